"""Best-of-n: draw n completions of every prompt and keep the one with the highest reward. Nothing is trained.

Left out on purpose: an estimate of the KL itself. The known formula is an upper bound of the KL to the sampling policy.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from frugalign.base.ledger import Ledger
from frugalign.data.encode import as_completions
from frugalign.decoding.loop import Generation
from frugalign.decoding.noise import alternative_keys
from frugalign.options.check import check_value
from frugalign.options.kinds import COUNT
from frugalign.policies.prompt_rows import PromptBatch, Scoring
from frugalign.rewards import NamedReward
from frugalign.rewards.check_scores import warn_of_useless_rewards

Draw = Callable[[Sequence[Sequence[int]], Tensor], Generation]
"""Samples one completion per row of token ids with the given noise keys."""


@dataclass(frozen=True)
class BestOfN:
    """`n` draws per row. The draw with the highest sum of `rewards`, weighted by `weights` (default 1 each), is kept.

    Raises:
        FrugalignError: an `n` below 1.
    """

    n: int
    rewards: Sequence[NamedReward]
    weights: Sequence[float] | None = None

    def __post_init__(self) -> None:
        check_value("best_of_n", self.n, COUNT)

    def sample(
        self,
        draw: Draw,
        batch: PromptBatch,
        tokenizer: PreTrainedTokenizerBase,
        batch_size: int,
        ledger: Ledger,
    ) -> Generation:
        """The best draw of every row. Ties go to the earlier draw; draws that no reward applies to rank last.

        The first draw uses the row's own key, so it equals the policy's single completion. The draws of a smaller `n`
        are among those of a larger one. `kl_choice` is `kl_bound(n)`.

        Args:
            draw: samples, and counts the tokens. The draws of a row are side by side.
            ledger: counts all reward calls.

        Raises:
            FrugalignError: a reward that fails.
        """
        rows = [row for row in range(len(batch.ids)) for _ in range(self.n)]
        keys = torch.stack([alternative_keys(batch.keys, number) for number in range(self.n)], 1).flatten()
        drawn = draw([batch.ids[row] for row in rows], keys)
        # A row's draws stay in one call: a reward may compare what it is given.
        scoring = Scoring(self.rewards, self.weights, batch_size=max(1, batch_size // self.n) * self.n)
        texts = tokenizer.batch_decode(drawn.completion_ids, skip_special_tokens=True)
        scores = batch.rows.take(rows).score(scoring, texts, drawn.completion_ids, ledger)
        if len(batch.ids) > 1:  # the draws for a single prompt may well be equally good
            completions = as_completions([batch.rows.prompts[row] for row in rows], texts)
            warn_of_useless_rewards(self.rewards, scores.by_name, completions)
        ranks = [-math.inf if total is None else total for total in scores.total]
        kept = [max(range(start, start + self.n), key=ranks.__getitem__) for start in range(0, len(rows), self.n)]
        zero = torch.zeros(len(kept), dtype=torch.float64)
        return Generation(
            completion_ids=[drawn.completion_ids[place] for place in kept],
            ended=[drawn.ended[place] for place in kept],
            # Not known at another temperature: the best draw is not one of p_T.
            kl_temperature=zero if drawn.kl_temperature is not None and not drawn.kl_temperature.any() else None,
            kl_restriction=zero,
            kl_choice=torch.full((len(kept),), kl_bound(self.n), dtype=torch.float64),
            traces=None if drawn.traces is None else [drawn.traces[place] for place in kept],
        )


def kl_bound(n: int) -> float:
    """`log n − (n − 1)/n` nats per sequence: an upper bound of the KL of best-of-n to its sampling policy, for any reward.

    See Beirami et al., 2024, arXiv 2401.01879. The bound is tight if equal completions are rare, and loose if the n draws
    hardly differ.
    """
    return math.log(n) - (n - 1) / n
