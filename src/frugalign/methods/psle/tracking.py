"""What the trackers are told of a round, beside the steps of its training: rewards, branches, some responses, the evaluation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from frugalign.methods.psle.responses import Round
from frugalign.runs.layout import read_round_metrics

_PROMPTS = 2
"""Prompts whose responses are shown."""


def sampled_values(done: Round, number: int, *, under_principles: bool) -> dict[str, float]:
    """The mean rewards of round `number` and the share of couples in each branch. `under_principles`: whether half of the responses are."""
    scored, counts = done.scored, done.counts()
    known, couples = scored.is_scored, max(1, sum(counts.values()))
    found = {"round": float(number), "reward": float(scored.rewards[~scored.rewards.isnan()].mean())}
    if under_principles and bool(known.any()):
        found |= {
            "reward_plain": float(scored.plain[known].mean()),
            "reward_guided": float(scored.guided[known].mean()),
        }
    return found | {f"couples/{name}": count / couples for name, count in counts.items()} | scored.metrics()


def some_responses(done: Round, number: int, *, under_principles: bool) -> list[dict[str, Any]]:
    """Every response to the round's first prompts."""
    scored, rows = done.scored, []
    for place, prompt in enumerate(scored.prompts[:_PROMPTS]):
        half = len(scored.completions[place]) // 2
        for column, text in enumerate(scored.completions[place]):
            reward = float(scored.rewards[place, column])
            rows.append(
                {
                    "round": number,
                    "prompt": prompt,
                    "completion": text,
                    "reward": None if reward != reward else reward,
                    "sampled": "under principles" if under_principles and column >= half else "plainly",
                }
            )
    return rows


def evaluation_values(folder: Path) -> dict[str, float]:
    """The means of an evaluation, `eval_` before each name. Empty where there is none."""
    found: dict[str, float] = {}
    for name, value in read_round_metrics(folder).items():
        if not isinstance(value, dict):
            continue
        several = value if "mean" not in value else {"": value}
        for part, estimate in several.items():
            if isinstance(estimate, dict) and isinstance(estimate.get("mean"), float):
                found[f"eval_{name}/{part}" if part else f"eval_{name}"] = estimate["mean"]
    return found
