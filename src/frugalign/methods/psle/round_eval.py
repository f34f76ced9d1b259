"""Evaluate the policy on held-out prompts after every round, without the principles.

It measures the training reward, further rewards, refusals, diversity and the KL to the start. Prompts and noise are the same
in every evaluation, so differences come from the policy.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from frugalign.base.errors import FrugalignError
from frugalign.base.files import write_atomic, write_json_atomic
from frugalign.base.ledger import Ledger
from frugalign.engines.loading import LoadedModel
from frugalign.evaluation.responses import measure_responses
from frugalign.evaluation.schema import Response, against, estimates
from frugalign.methods.carriers import Carrier, StartingModel
from frugalign.methods.psle.config import PSLEConfig
from frugalign.policies.policy import Policy
from frugalign.policies.prompt_rows import PromptRows, Scoring
from frugalign.policies.spec import PolicySpec, SamplingSettings
from frugalign.rewards.loading import NamedReward
from frugalign.runs.layout import ROUND_METRICS_FILE, ROUND_SAMPLES_FILE, read_round_samples
from frugalign.runs.processes import add_all_counts, gather_rows, is_main_process, local_rows

_EPOCH = 1_000_003
"""The noise epoch of held-out prompts. No round reaches it."""


@dataclass(frozen=True)
class RoundEvaluation:
    """Evaluates on `dataset`, the held-out prompts. `rewards` are trained on, `extra_rewards` are only measured."""

    dataset: Dataset
    tokenizer: PreTrainedTokenizerBase
    rewards: list[NamedReward]
    extra_rewards: list[NamedReward]
    args: PSLEConfig

    def run(
        self,
        carrier: Carrier,
        costs: Path,
        ledger: Ledger,
        before: Path | None = None,
    ) -> None:
        """Sample and score, and write `evaluation.jsonl`, the costs and `evaluation.json`, in this order.

        Args:
            costs: the file of the costs. The other files stand beside it.
            before: the folder of the evaluation at the start, for the win rate. None for that evaluation itself.
        """
        mine = local_rows(len(self.dataset))
        counted = Ledger()
        with ledger.phase("evaluate"):
            start = StartingModel(carrier.lm) if before is None else carrier.before()
            responses = self._responses(carrier, start, mine, counted)
        add_all_counts(ledger, counted)
        numbered = [(row, each.to_line()) for row, each in zip(mine, responses, strict=True)]
        lines = [line for _, line in gather_rows(numbered)]
        if is_main_process():
            text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
            write_atomic(costs.with_name(ROUND_SAMPLES_FILE), text)
            first = None if before is None else read_round_samples(before)
            try:
                found = summary(lines, first)
            except (TypeError, ValueError, LookupError) as error:
                raise FrugalignError(
                    f"{before}/{ROUND_SAMPLES_FILE} is damaged: delete {before} to measure the start again."
                ) from error
            ledger.save(costs)
            write_json_atomic(costs.with_name(ROUND_METRICS_FILE), found)

    def _responses(
        self, carrier: Carrier, start: StartingModel, numbers: Sequence[int], ledger: Ledger
    ) -> list[Response]:
        """Responses to this process's prompts."""
        args = self.args
        policy = Policy(
            PolicySpec(),
            LoadedModel(carrier.lm, self.tokenizer, str(args.model_name_or_path or ""), None),
            carrier.lm,
            start.model,
            base_context=start.context,
            guide=carrier.guide(),
        )
        settings = SamplingSettings(
            max_new_tokens=args.max_new_tokens,
            temperature=args.temperature,
            prompt_format=args.prompt_format,
            chat_template_kwargs=args.chat_template_kwargs,
            seed=args.seed,
        )
        rows = PromptRows.of(self.dataset).take(numbers)
        batch = policy.encode(rows, settings, numbers=numbers, epoch=_EPOCH)
        sampled = policy.sample(batch, settings, batch_size=args.sampling_batch_size, ledger=ledger)
        return measure_responses(
            policy,
            batch,
            sampled,
            Scoring(self.rewards, args.reward_weights, args.reward_on_error),
            ledger,
            divergence=policy.divergence(batch, sampled, settings, ledger),
            extra_rewards=self.extra_rewards,
        )


def summary(lines: Sequence[dict[str, Any]], before: Sequence[dict[str, Any]] | None) -> dict[str, Any]:
    """Estimates from the lines of evaluation.jsonl, with comparisons to the lines `before`. None if a measure does not apply."""
    responses = [Response.from_line(line) for line in lines]
    found = estimates(responses)
    if before is None:
        return found | dict.fromkeys(("reward_difference", "reward_differences", "win_rate"))
    return found | against(responses, [Response.from_line(line) for line in before])
