"""Reward-guided decoding by ARGS's rule (Khanov, Burapacheep and Li, 2024, arXiv 2402.01694, section 2). Nothing is trained.

At every position the base's `k` likeliest tokens are scored `logit + weight · r(prompt, text so far + token)`; the next token is the best
of them, or drawn from the softmax of the scores at the temperature. (Log-probabilities in place of logits give the same choice: they differ
by a constant of the position.) The price is `k` reward calls a token.

The decoding loop shows a guide no token ids. But what a guide emits is all that is ever written, and a noise key names the row, so
`RewardGuide` keeps the texts itself and the loop stays as it is. Left out on purpose: beams and assistants, for which the scores
of several positions or hypotheses would have to be told apart, and a reward model's cache from one position to the next.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor, PreTrainedTokenizerBase

from frugalign.base.errors import FrugalignError
from frugalign.base.ledger import Ledger
from frugalign.decoding.chooser import STREAM_EMIT, Emission, Lookahead, TokenTrace
from frugalign.decoding.noise import Noise
from frugalign.engines.loading import LoadedModel
from frugalign.engines.transformers import end_token_ids
from frugalign.options.check import check_value
from frugalign.options.kinds import COUNT, FINITE
from frugalign.policies.prompt_rows import PromptRows, Scoring
from frugalign.rewards import NamedReward, RewardSpec, load_rewards


@dataclass(frozen=True)
class RewardGuidance:
    """Which rewards guide (their sum, weighed by `reward_weights`, default 1 each), how strongly, and among how many tokens.

    Raises:
        FrugalignError: a weight that is not finite, or a `top_k` below 1.
    """

    rewards: Sequence[NamedReward]
    weight: float = 1.0
    top_k: int = 10
    reward_weights: Sequence[float] | None = None

    def __post_init__(self) -> None:
        check_value("guiding_weight", self.weight, FINITE)
        check_value("guiding_top_k", self.top_k, COUNT)

    def guide(
        self, base: LoadedModel, rows: PromptRows, temperature: float, keys: Tensor, ledger: Ledger
    ) -> RewardGuide:
        """The guide of these rows, whose noise keys are `keys [B]`."""
        ends = frozenset(end_token_ids(base.model, base.tokenizer))
        return RewardGuide(_PrefixScores(self, rows, base.tokenizer, ends, ledger), temperature, keys)


@dataclass(frozen=True)
class _PrefixScores:
    """Scores the likeliest next tokens of several rows, all in one reward call."""

    guidance: RewardGuidance
    prompts: PromptRows
    tokenizer: PreTrainedTokenizerBase
    end_ids: frozenset[int]
    ledger: Ledger

    def __call__(
        self, logits: Tensor, rows: Sequence[int], written: Sequence[list[int]]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Ids, logits and scores `logit + weight · r` of the candidates, `[B, k]` each, the likeliest first.

        Args:
            logits: `[B, V]` float32.
            rows: place of each row in `prompts`.
            written: its completion so far. One that has ended is not scored any more: nothing follows its end.
        """
        values, ids = logits.topk(min(self.guidance.top_k, logits.shape[-1]), -1)
        open_rows = [place for place, tokens in enumerate(written) if self.end_ids.isdisjoint(tokens)]
        if not open_rows:
            return ids, values, values
        columns = ids.tolist()
        continued = [[*written[place], token] for place in open_rows for token in columns[place]]
        # An end token adds nothing to the text; a reward that cares reads completion_ids.
        texts = self.tokenizer.batch_decode(continued, skip_special_tokens=True)
        asked = self.prompts.take([rows[place] for place in open_rows for _ in columns[place]])
        scoring = Scoring(self.guidance.rewards, self.guidance.reward_weights)
        found = asked.score(scoring, texts, continued, self.ledger)
        # None: the reward does not apply, and has no say.
        rewards = values.new_tensor([0.0 if total is None else total for total in found.total])
        scores = values.clone()
        scores[open_rows] += self.guidance.weight * rewards.reshape(len(open_rows), -1)
        return ids, values, scores


class RewardGuide:
    """ARGS's rule as the decoding loop's guide, for the rows that it was made for.

    Drawn by the Gumbel-max trick on the noise of the tokens, as the base is. The KL is exact over the full vocabulary: `−log p_T` of
    the k tokens, and `KL(π ‖ p_T)` among them.

    Raises:
        FrugalignError: two rows with one key, whose texts could not be told apart.
    """

    needs_hidden = False
    needs_lookahead = False

    def __init__(self, prefix_scores: _PrefixScores, temperature: float, keys: Tensor) -> None:
        self.temperature = temperature
        self._prefix_scores = prefix_scores
        self._rows = {key: row for row, key in enumerate(keys.tolist())}
        self._written: list[list[int]] = [[] for _ in keys]
        if len(self._rows) < len(keys):
            raise FrugalignError("Two rows have the same noise key, so reward-guided decoding cannot tell them apart.")

    @torch.no_grad()
    def emit(
        self, h: Tensor, logits: Tensor, noise: Noise, *, do_sample: bool = True, lookahead: Lookahead | None = None
    ) -> Emission:
        """Choose one token a row and remember it as written."""
        rows = [self._rows[key] for key in noise.keys.tolist()]
        if noise.position == 0:
            for row in rows:
                self._written[row] = []
        ids, values, scores = self._prefix_scores(logits, rows, [self._written[row] for row in rows])
        if not do_sample:
            token = _column(ids, scores.argmax(-1))
            self._write(rows, token)
            return Emission(token)
        log_pi = torch.log_softmax(scores / self.temperature, -1)
        token = _column(ids, (log_pi + noise.gumbel(STREAM_EMIT, ids)).argmax(-1))
        self._write(rows, token)
        scaled = values / self.temperature
        log_mass = scaled.logsumexp(-1) - (logits / self.temperature).logsumexp(-1)
        gap = log_pi - torch.log_softmax(scaled, -1)
        return Emission(token, kl_restriction=-log_mass.clamp(max=0.0), kl_choice=(log_pi.exp() * gap).sum(-1))

    def _write(self, rows: Sequence[int], token: Tensor) -> None:
        for row, each in zip(rows, token.tolist(), strict=True):
            self._written[row].append(each)

    def trace(self, emission: Emission, noise: Noise) -> list[TokenTrace]:
        """Nothing is proposed and turned down here."""
        return [TokenTrace(token=int(token), acceptance=None, rejected=()) for token in emission.token]


class RewardGuidedLogitsProcessor(LogitsProcessor):
    """ARGS's rule for plain `model.generate(…, logits_processor=[processor])`: scores outside the `top_k` tokens become −inf.

    `do_sample=False` gives the rule's greedy form; `do_sample=True, top_k=0` the random one, at `generate`'s own temperature. Several
    sequences a prompt work; beams and assistants do not.

    Args:
        tokenizer: of the model that generates.
        prompts: one string or message list per row, as the reward reads them. `PromptRows` adds columns that the reward reads.
        reward: one or several, as objects or strings; models are loaded on the CPU.
        prompt_length: width of the padded `input_ids` that `generate` is given.
        ledger: counts reward calls and seconds.

    Raises:
        FrugalignError: a reward that cannot be loaded or fails; a batch that does not belong to the prompts.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        prompts: PromptRows | Sequence[Any],
        reward: RewardSpec | Sequence[RewardSpec],
        *,
        prompt_length: int,
        weight: float = 1.0,
        top_k: int = 10,
        ledger: Ledger | None = None,
    ) -> None:
        ends = [] if tokenizer.eos_token_id is None else [int(tokenizer.eos_token_id)]
        self._n_prompts, self._prompt_length = len(prompts), prompt_length
        self._prefix_scores = _PrefixScores(
            RewardGuidance(load_rewards(reward), weight, top_k),
            prompts if isinstance(prompts, PromptRows) else PromptRows(prompts),
            tokenizer,
            frozenset(ends),
            ledger or Ledger(),
        )

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        per_prompt, rest = divmod(len(input_ids), self._n_prompts)
        if rest or not per_prompt:
            raise FrugalignError(f"{len(input_ids)} rows are generated, but the reward has {self._n_prompts} prompts.")
        rows = [row // per_prompt for row in range(len(input_ids))]
        written: list[list[int]] = input_ids[:, self._prompt_length :].tolist()
        ids, _, guided = self._prefix_scores(scores.float(), rows, written)
        return torch.full_like(scores, -torch.inf, dtype=torch.float32).scatter(-1, ids, guided)


def _column(ids: Tensor, column: Tensor) -> Tensor:
    return ids.gather(-1, column[:, None]).squeeze(-1)
