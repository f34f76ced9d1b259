"""Reward against sampled tokens: a proxy with as many passes over a rollout as its trust region allows, with two, and TRL's RLOO.

    FRUGALIGN_TRIALS=folder python -m experiments.sample_efficiency stories [--jobs 2]
    FRUGALIGN_TRIALS=folder FRUGALIGN_MODELS=folder python -m experiments.sample_efficiency smollm2

Runs `studies/samples-NAME.yaml`, whose lines have equal budgets, and reads when each line's training reward reaches the others' final one. Finished
cells are skipped.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from experiments.smoke import STUDIES, finished_rows
from experiments.summary import estimate, script_options, write_summary

from frugalign.runs.layout import read_log
from frugalign.study.layout import training_run
from frugalign.study.table import Row

SHARE = 0.1
"""Of a training's rollouts, at least five: the window of a running mean."""
_LENGTHS = ("completion_length", "completions/mean_length")


@dataclass(frozen=True)
class Curve:
    """A training's running mean reward and the tokens that it had sampled by then."""

    tokens: list[float]
    rewards: list[float]

    def reached(self, mark: float) -> float | None:
        """Tokens sampled until the mark; None where it is never reached."""
        return next((at for at, reward in zip(self.tokens, self.rewards, strict=True) if reward >= mark), None)


def curve_of(log: Sequence[dict[str, Any]], generated_tokens: float) -> Curve:
    """From a training's log, which has a line a rollout. The rollouts have as many responses each, so their mean lengths share out the tokens."""
    rollouts = [line for line in log if "reward" in line and "step" in line]
    lengths = [next(line[name] for name in _LENGTHS if name in line) for line in rollouts]
    window = min(len(rollouts), max(5, round(SHARE * len(rollouts))))
    tokens, rewards, total = [], [], 0.0
    for number, length in enumerate(lengths, start=1):
        total += length / sum(lengths) * generated_tokens
        if number >= window:
            tokens.append(total)
            rewards.append(statistics.mean(each["reward"] for each in rollouts[number - window : number]))
    return Curve(tokens, rewards)


def curves_of(row: Row) -> list[Curve]:
    """One for every finished seed."""
    done = [(each, each.result) for each in row.outcomes if each.result is not None]
    return [
        curve_of(read_log(training_run(each.training)), result["costs"]["generated_tokens"]) for each, result in done
    ]


def table(rows: Sequence[Row]) -> dict[str, dict[str, Any]]:
    """For every line: tokens to the final reward of each other line, as means over seeds, and what it reaches."""
    curves = {row.line.label: curves_of(row) for row in rows if row.trainable_parameters}
    marks = {label: statistics.mean(each.rewards[-1] for each in own) for label, own in curves.items()}
    found: dict[str, dict[str, Any]] = {}
    for row in rows:
        label, own = row.line.label, curves.get(row.line.label, [])
        main = row.main
        found[label] = {
            "test reward": None if main is None else estimate(main.value.to_dict()),
            "KL, nats": row.others["kl_per_sequence"].mean if row.others["kl_per_sequence"] else 0.0,
            "training reward at the end": marks.get(label),
            "tokens sampled": row.costs["generated_tokens"],
            "tokens fed": row.costs["lm_forward_tokens"],
            "seconds": row.costs["wall_clock_seconds"],
            "seeds": len(row.outcomes),
        }
        for other, mark in marks.items():
            reached = [each.reached(mark) for each in own]
            known = [at for at in reached if at is not None]
            found[label][f"tokens to {other}'s"] = statistics.mean(known) if own and len(known) == len(own) else None
    return found


def main() -> None:
    given = script_options(
        __doc__,
        name={"nargs": "?", "default": "stories", "choices": ["stories", "smollm2"]},
        jobs={"type": int, "default": 1},
    )
    options, rows = finished_rows(STUDIES / f"samples-{given.name}.yaml", is_smoke=given.smoke, jobs=given.jobs)
    found = table(rows)
    for label, row in found.items():
        print(label, json.dumps(row), flush=True)
    if given.smoke:
        return
    command = f"python -m experiments.sample_efficiency {given.name}"
    write_summary(f"samples-{given.name}", command, options.model_name_or_path, found, {"budget": options.budget})


if __name__ == "__main__":
    main()
