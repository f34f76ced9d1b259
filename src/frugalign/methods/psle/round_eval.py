"""What every round leaves of the policy on held-out prompts, plainly asked: the training reward, judges, refusals, diversity, KL to the start.

The same prompts and the same noise before and after every round, so that differences are the policy's.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import PartialState
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from frugalign.base.files import write_atomic, write_json_atomic
from frugalign.base.ledger import Ledger
from frugalign.data.encode import completions_of
from frugalign.data.templating import encode_prompts
from frugalign.decoding.log_probs import sequence_kl
from frugalign.decoding.loop import SamplingParams, generate
from frugalign.decoding.noise import row_keys
from frugalign.engines.loading import context_length
from frugalign.methods.psle.config import PSLEConfig
from frugalign.metrics import distinct_n, is_refusal, mean_interval, win_rate
from frugalign.rewards.loading import NamedReward
from frugalign.rewards.scoring import score
from frugalign.runs.layout import ROUND_METRICS_FILE, ROUND_SAMPLES_FILE, read_round_samples
from frugalign.runs.processes import count_all, my_rows, shared

_EPOCH = 1_000_003
"""Held-out prompts draw noise of an epoch that no round reaches."""


@dataclass(frozen=True)
class RoundWatch:
    """`dataset`: held-out prompts; `rewards`: those that train; `judges`: those that do not."""

    dataset: Dataset
    tokenizer: PreTrainedTokenizerBase
    rewards: list[NamedReward]
    judges: list[NamedReward]
    args: PSLEConfig

    def look(
        self,
        model: PreTrainedModel,
        folder: Path,
        first: Path | None,
        ledger: Ledger,
        start: tuple[PreTrainedModel, Callable[[], Any]],
    ) -> None:
        """Sample, score and write `evaluation.json` and `evaluation.jsonl`; `first`: the folder of the look at the start, None for that look itself.

        Args:
            start: the starting model, and what is entered to get it (a LoRA's `disable_adapter`).
        """
        args = self.args
        rows = my_rows(len(self.dataset))
        columns = self.dataset[rows]
        prompts = columns["prompt"]
        counted = Ledger()
        with ledger.phase("evaluate"):
            ids = encode_prompts(
                prompts,
                self.tokenizer,
                max_context=context_length(model),
                max_new_tokens=args.max_new_tokens,
                prompt_format=args.prompt_format,
            ).ids
            params = SamplingParams(args.max_new_tokens, args.temperature)
            keys = row_keys(args.seed, _EPOCH, rows, [0] * len(rows))
            found = generate(
                model, self.tokenizer, ids, params, keys=keys, batch_size=args.sampling_batch_size, ledger=counted
            )
            # Row by row: a process may have no prompt at all.
            texts = [str(self.tokenizer.decode(each, skip_special_tokens=True)) for each in found.completion_ids]
            judged = {
                "prompts": prompts,
                "completions": completions_of(prompts, texts),
                "completion_ids": found.completion_ids,
                "columns": {name: values for name, values in columns.items() if name != "prompt"},
                "on_error": args.reward_on_error,
                "ledger": counted,
            }
            trained = score(self.rewards, weights=args.reward_weights, **judged)
            by_name = trained.by_name | (score(self.judges, **judged).by_name if self.judges else {})
            kl = [0.0] * len(rows)
            if first is not None and rows:
                other, context = start
                kl = sequence_kl(
                    model,
                    other,
                    ids,
                    found.completion_ids,
                    temperature=args.temperature,
                    batch_size=16,
                    ledger=counted,
                    base_context=context,
                ).tolist()
        count_all(ledger, counted)
        mine = []
        for place, row in enumerate(rows):
            line = {
                "prompt": prompts[place],
                "completion": texts[place],
                "reward": trained.total[place],
                "by_reward": {name: values[place] for name, values in by_name.items()},
                "kl": kl[place],
                "tokens": len(found.completion_ids[place]),
                "ended": found.ended[place],
                "distinct_2": distinct_n(found.completion_ids[place]),
            }
            if "label" in columns:
                line["label"] = str(columns["label"][place])
            mine.append((row, line))
        lines = [line for _, line in shared(mine)]
        if PartialState().is_main_process:
            before = None if first is None else read_round_samples(first)
            write_atomic(
                folder / ROUND_SAMPLES_FILE, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
            )
            write_json_atomic(folder / ROUND_METRICS_FILE, summary(lines, before))


def summary(lines: Sequence[dict[str, Any]], before: Sequence[dict[str, Any]] | None) -> dict[str, Any]:
    """Means with 95 % intervals over prompts, and the win rate of the training reward against `before`; None where nothing applies."""

    def mean(values: Sequence[Any]) -> dict[str, float | int] | None:
        found = mean_interval(values)
        return None if found is None else found.to_dict()

    refused = [is_refusal(line["completion"]) for line in lines]
    safe = [refusal for refusal, line in zip(refused, lines, strict=True) if line.get("label") == "safe"]
    unsafe = [refusal for refusal, line in zip(refused, lines, strict=True) if line.get("label") == "unsafe"]
    found: dict[str, Any] = {
        "reward": mean([line["reward"] for line in lines]),
        "by_reward": {name: mean([line["by_reward"][name] for line in lines]) for name in lines[0]["by_reward"]},
        "kl": mean([line["kl"] for line in lines]),
        "tokens": mean([line["tokens"] for line in lines]),
        "ended": mean([line["ended"] for line in lines]),
        "distinct_2": mean([line["distinct_2"] for line in lines]),
        "refused": mean(refused),
        "refused_safe": mean(safe),
        "refused_unsafe": mean(unsafe),
        "win_rate": None,
    }
    if before is not None:
        won = win_rate([line["reward"] for line in lines], [line["reward"] for line in before])
        found["win_rate"] = None if won is None else won.to_dict()
    return found
