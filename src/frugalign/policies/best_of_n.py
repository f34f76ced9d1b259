"""Best-of-n: draw n completions of every prompt from the base and keep the one that a reward likes best. Nothing is trained.

Left out on purpose: an estimate of the KL itself (the known formula bounds it from above), and drawing from anything but the base.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from frugalign.base.errors import FrugalignError
from frugalign.base.ledger import Ledger
from frugalign.decoding.loop import Generation, SamplingParams, generate
from frugalign.decoding.noise import alternative_keys
from frugalign.engines.loading import LoadedModel
from frugalign.policies.prompt_rows import Asked
from frugalign.rewards import NamedReward


@dataclass(frozen=True)
class BestOfN:
    """`n` draws a row; `rewards` choose by their sum, weighed by `weights` (default 1 each).

    Raises:
        FrugalignError: an `n` below 1.
    """

    n: int
    rewards: Sequence[NamedReward]
    weights: Sequence[float] | None = None

    def __post_init__(self) -> None:
        if self.n < 1:
            raise FrugalignError(f"best_of_n is {self.n}; it must be at least 1.")

    def sample(
        self,
        base: LoadedModel,
        asked: Asked,
        prompt_ids: Sequence[Sequence[int]],
        params: SamplingParams,
        keys: Tensor,
        batch_size: int,
        ledger: Ledger,
    ) -> Generation:
        """The best draw of every row, the first one of equals; draws that no reward applies to come last.

        The first draw has the row's own key, so it is the base's completion on the same noise, and the draws of a smaller `n` are
        among those of a larger one. All draws and all reward calls are in the ledger. `kl_choice` is `kl_bound(n)`.

        Raises:
            FrugalignError: greedy decoding, whose draws are all the same; a reward that fails.
        """
        if not params.do_sample:
            raise FrugalignError(
                "best_of_n chooses among random draws, so it cannot decode greedily: leave do_sample on."
            )
        rows = [row for row in range(len(prompt_ids)) for _ in range(self.n)]
        drawn = generate(
            base.model,
            base.tokenizer,
            [prompt_ids[row] for row in rows],
            params,
            keys=torch.stack([alternative_keys(keys, number) for number in range(self.n)], 1).flatten(),
            batch_size=batch_size,
            ledger=ledger,
        )
        scores = asked.score(
            self.rewards,
            rows,
            base.tokenizer.batch_decode(drawn.completion_ids, skip_special_tokens=True),
            drawn.completion_ids,
            # A row's draws stay in one call: a reward may compare what it is given.
            batch_size=max(1, batch_size // self.n) * self.n,
            ledger=ledger,
            weights=self.weights,
        )
        ranks = [-math.inf if total is None else total for total in scores.total]
        kept = [max(range(start, start + self.n), key=ranks.__getitem__) for start in range(0, len(rows), self.n)]
        return Generation(
            completion_ids=[drawn.completion_ids[place] for place in kept],
            ended=[drawn.ended[place] for place in kept],
            kl_restriction=torch.zeros(len(kept), dtype=torch.float64),
            kl_choice=torch.full((len(kept),), kl_bound(self.n), dtype=torch.float64),
        )


def kl_bound(n: int) -> float:
    """`log n − (n − 1)/n`, nats a sequence: at least the KL of best-of-n to what it draws from, whatever the reward (Beirami et
    al., 2024, arXiv 2401.01879). Close to it where equal completions are rare, far above where n draws hardly differ.
    """
    return math.log(n) - (n - 1) / n
