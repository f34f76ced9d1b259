"""Reward-guided decoding by ARGS's rule (Khanov, Burapacheep and Li, 2024, arXiv 2402.01694, section 2). Nothing is trained.

At every position the base's `k` most likely tokens get the score `logit + weight · r(prompt, text so far + token)`. The next
token is the best of them, or a sample from the softmax of the scores at the temperature. Log-probabilities instead of logits
give the same choice, since both differ by a constant. The cost is `k` reward calls per token.

The decoding loop passes no token ids to a guide. `RewardGuide` records the tokens that it emits, and finds a row by its noise
key. Left out on purpose: beams and assistant models, whose hypotheses cannot be told apart here, and a reward model's cache
between positions.
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
from frugalign.data.chat_template import end_of_turn
from frugalign.decoding.chooser import STREAM_EMIT, Emission, Lookahead, TokenTrace, temperature_gain
from frugalign.decoding.noise import Noise
from frugalign.engines.loading import LoadedModel
from frugalign.engines.transformers import end_token_ids
from frugalign.options.check import check_value
from frugalign.options.kinds import COUNT, FINITE
from frugalign.policies.prompt_rows import PromptRows, Scoring
from frugalign.rewards import NamedReward, RewardSpec, load_rewards


@dataclass(frozen=True)
class RewardGuidance:
    """Guide decoding by the sum of `rewards`, weighted by `reward_weights` (default 1 each).

    `weight` is the strength of the guidance, and `top_k` the number of tokens that are scored at each position.

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
        """A guide for these rows, whose noise keys are `keys [B]`."""
        ends = frozenset(end_token_ids(base.model, base.tokenizer))
        return RewardGuide(_PrefixScores(self, rows, base.tokenizer, ends, ledger), temperature, keys)


@dataclass(frozen=True)
class _PrefixScores:
    """Scores the most likely next tokens of several rows in one reward call."""

    guidance: RewardGuidance
    prompts: PromptRows
    tokenizer: PreTrainedTokenizerBase
    end_ids: frozenset[int]
    ledger: Ledger

    def __call__(
        self, logits: Tensor, rows: Sequence[int], written: Sequence[list[int]]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Ids, logits and scores `logit + weight · r` of the candidates, `[B, k]` each, most likely first.

        Args:
            logits: `[B, V]` float32.
            rows: each row's index in `prompts`.
            written: each row's completion so far. Completions that have ended are not scored.
        """
        values, ids = logits.topk(min(self.guidance.top_k, logits.shape[-1]), -1)
        open_rows = [place for place, tokens in enumerate(written) if self.end_ids.isdisjoint(tokens)]
        if not open_rows:
            return ids, values, values
        columns = ids.tolist()
        continued = [[*written[place], token] for place in open_rows for token in columns[place]]
        # An end token adds nothing to the text; a reward that cares reads completion_ids.
        texts = self.tokenizer.batch_decode(continued, skip_special_tokens=True)
        prompts = self.prompts.take([rows[place] for place in open_rows for _ in columns[place]])
        scoring = Scoring(self.guidance.rewards, self.guidance.reward_weights)
        found = prompts.score(scoring, texts, continued, self.ledger)
        # None: the reward does not apply, and counts as 0.
        rewards = values.new_tensor([0.0 if total is None else total for total in found.total])
        scores = values.clone()
        scores[open_rows] += self.guidance.weight * rewards.reshape(len(open_rows), -1)
        return ids, values, scores


class RewardGuide:
    """ARGS's rule as a guide of the decoding loop, for a fixed set of rows.

    Tokens are sampled by the Gumbel-max trick on the tokens' noise, as the base's are. The KL is exact over the full
    vocabulary: `−log p_T` of the k tokens, plus `KL(π ‖ p_T)` among them, plus what the temperature costs.

    Raises:
        FrugalignError: two rows with the same key.
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
        """Choose one token per row and record it."""
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
        gain = temperature_gain(logits, self.temperature)
        return Emission(
            token,
            kl_temperature=torch.zeros_like(log_mass)
            if gain is None
            else (log_pi.exp() * gain.gather(-1, ids)).sum(-1),
            kl_restriction=-log_mass.clamp(max=0.0),
            kl_choice=(log_pi.exp() * gap).sum(-1),
        )

    def _write(self, rows: Sequence[int], token: Tensor) -> None:
        for row, each in zip(rows, token.tolist(), strict=True):
            self._written[row].append(each)

    def trace(self, emission: Emission, noise: Noise) -> list[TokenTrace]:
        """Tokens without proposals: this guide rejects nothing."""
        return [TokenTrace(token=int(token), acceptance=None, rejected=()) for token in emission.token]


class RewardGuidedLogitsProcessor(LogitsProcessor):
    """ARGS's rule for plain `model.generate(…, logits_processor=[processor])`: scores outside the `top_k` tokens become −inf.

    `do_sample=False` gives the greedy form of the rule, and `do_sample=True, top_k=0` the sampling form at `generate`'s own
    temperature. Several sequences per prompt are supported. Beams and assistant models are not.

    Args:
        tokenizer: the tokenizer of the generating model.
        prompts: one string or message list per row, as the reward reads them. `PromptRows` adds columns that the reward reads.
        reward: one or several rewards, as objects or strings. Reward models are loaded on the CPU.
        prompt_length: width of the padded `input_ids` that are passed to `generate`.
        ledger: counts reward calls and seconds.

    Raises:
        FrugalignError: a reward that cannot be loaded or fails, or a batch with another number of prompts.
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
        ends = {tokenizer.eos_token_id, end_of_turn(tokenizer)} - {None}
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
