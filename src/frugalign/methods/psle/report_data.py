"""The results of `frugalign psle` as plain values, round by round. `reports.psle_section` draws them.

A round is a folder `round-NNN` with a `manifest.json`. A round without one is incomplete and left out. Only files are read, so
the page can be made on a machine without the model. Rounds count from 0, as their folders do. Held-out measures are placed
at the number of finished rounds, so 0 is the start.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from frugalign.base.ledger import PHASES, Costs
from frugalign.base.wording import pluralize
from frugalign.runs.layout import (
    COSTS_FILE,
    LOG_FILE,
    RESPONSES_FILE,
    ROUND_METRICS_FILE,
    ROUND_SAMPLES_FILE,
    START_FOLDER,
    Manifest,
    read_costs,
    read_log,
    read_manifest,
    read_responses,
    read_round_metrics,
    read_round_samples,
    round_folder,
    rounds_in,
)

Points = tuple[str, list[int], list[tuple[float, float, float]]]
"""A line of a figure: its label, round numbers, and (value, lower limit, upper limit) at each."""

_BRANCHES = ("ranked", "imitated", "dropped", "unscored")
_LOG_LIKELIHOODS = ("log_likelihood/ranked_guided", "log_likelihood/ranked_plain")


@dataclass(frozen=True)
class HeldOutEvaluation:
    """The evaluation after `rounds_done` rounds: means with intervals, and completions. Empty if the files are missing."""

    rounds_done: int
    measures: dict[str, Any]
    samples: list[dict[str, Any]]


@dataclass(frozen=True)
class FinishedRound:
    """A complete round. `plain`, `guided`: rewards of the scored couples. `unscored`: number of other couples."""

    number: int
    manifest: Manifest
    costs: Costs
    log: list[dict[str, Any]]
    plain: list[float]
    guided: list[float]
    unscored: int
    trained_on: list[str]


@dataclass(frozen=True)
class Rounds:
    """The rounds of a run. `incomplete`: folders that were left out. `missing`: descriptions of missing files."""

    done: list[FinishedRound]
    evaluations: list[HeldOutEvaluation]
    incomplete: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)

    @property
    def sides(self) -> tuple[str, str]:
        """Labels of the two halves of a prompt's responses. Without principles both are plain."""
        if self.done and self.done[0].manifest.get("principles", "") is None:
            return "plain, first half", "plain, second half"
        return "plain", "under the principles"


def read_rounds(folder: Path) -> Rounds | None:
    """Read the finished rounds of a run folder; None if there are none.

    Raises:
        FrugalignError: a file that is not valid JSON.
    """
    folders = [(number, round_folder(folder, number)) for number in rounds_in(folder)]
    manifests = {number: manifest for number, path in folders if (manifest := read_manifest(path)) is not None}
    finished = [(number, path) for number, path in folders if number in manifests]
    if not finished:
        return None
    seen = [(0, folder / START_FOLDER), *((number + 1, path) for number, path in finished)]
    rounds = Rounds(
        [_round(number, path, manifests[number]) for number, path in finished],
        [HeldOutEvaluation(done, read_round_metrics(path), read_round_samples(path)) for done, path in seen],
        [path.name for number, path in folders if number not in manifests],
    )
    lacks: dict[str, list[str]] = {}
    for (_, path), evaluation in zip(seen, rounds.evaluations, strict=True):
        for name, content in ((ROUND_METRICS_FILE, evaluation.measures), (ROUND_SAMPLES_FILE, evaluation.samples)):
            if not content:
                lacks.setdefault(name, []).append(path.name)
    for (_, path), each in zip(finished, rounds.done, strict=True):
        ranked = each.manifest.get("branches", {}).get("ranked")
        unlogged = bool(ranked) and not _logged(each, _LOG_LIKELIHOODS[0])
        for name, is_missing in (
            (RESPONSES_FILE, not (each.plain or each.unscored)),
            (COSTS_FILE, not each.costs),
            (f"log-likelihoods of ranked couples in {LOG_FILE} (a run logs them every logging_steps)", unlogged),
        ):
            if is_missing:
                lacks.setdefault(name, []).append(path.name)
    rounds.missing.extend(f"{name} of {', '.join(places)}" for name, places in lacks.items())
    return rounds


def _round(number: int, folder: Path, manifest: Manifest) -> FinishedRound:
    plain, guided, unscored = [], [], 0
    lines = read_responses(folder)
    for line in lines:
        rewards = line.get("rewards", [])
        half = len(rewards) // 2
        for first, second in zip(rewards[:half], rewards[half:], strict=False):
            if _is_number(first) and _is_number(second):
                plain.append(float(first))
                guided.append(float(second))
            else:
                unscored += 1
    return FinishedRound(
        number,
        manifest,
        read_costs(folder),
        read_log(folder),
        plain,
        guided,
        unscored,
        list(lines[0].get("by_reward", {})) if lines else [],
    )


# -- lines of the figures ------------------------------------------------------------------------------------------------


def held_out_points(rounds: Rounds, label: str, *keys: str) -> Points:
    """A held-out estimate, by its keys in evaluation.json, after 0, 1, … rounds. A missing estimate gives no point."""
    found = [(each.rounds_done, estimate) for each in rounds.evaluations if (estimate := _at(each.measures, keys))]
    values = [(float(each["mean"]), float(each["ci_low"]), float(each["ci_high"])) for _, each in found]
    return label, [done for done, _ in found], values


def manifest_points(rounds: Rounds, label: str, *keys: str) -> Points:
    """A number from the manifests, by its keys. Both limits equal the number."""
    found = [(each.number, float(value)) for each in rounds.done if _is_number(value := _at(each.manifest, keys))]
    return label, [number for number, _ in found], [(value, value, value) for _, value in found]


def gains(rounds: Rounds, label: str) -> Points:
    """The mean reward of the second half of a prompt's responses minus that of the first half, in every round."""
    means = [_at(each.manifest, ("rewards",)) or {} for each in rounds.done]
    both = [(_at(mean, ("plain", "mean")), _at(mean, ("guided", "mean"))) for mean in means]
    found = [
        (each.number, float(guided - plain))
        for each, (plain, guided) in zip(rounds.done, both, strict=True)
        if _is_number(plain) and _is_number(guided)
    ]
    return label, [number for number, _ in found], [(gain, gain, gain) for _, gain in found]


def branch_shares(rounds: Rounds) -> list[tuple[str, list[float]]]:
    """For each branch that occurs, its share of every round's couples."""
    counts = [each.manifest.get("branches", {}) for each in rounds.done]
    shares = [(name, [found.get(name, 0) / max(1, sum(found.values())) for found in counts]) for name in _BRANCHES]
    return [(name, values) for name, values in shares if any(values)]


def displacement(rounds: Rounds) -> tuple[list[tuple[str, list[tuple[list[int], list[float]]]]], list[int]]:
    """Log-likelihoods of both responses of ranked couples, and the last step of every round but the last.

    Each of the two series has one (steps, values) per round. Steps are numbered across rounds.
    """
    ends = [0]
    for each in rounds.done:
        steps = each.manifest.get("optimizer_steps")
        ends.append(
            ends[-1] + int(max([line.get("step", 0) for line in each.log], default=0) if steps is None else steps)
        )
    series = []
    for label, key in zip(reversed(rounds.sides), _LOG_LIKELIHOODS, strict=True):
        parts = []
        for each, start in zip(rounds.done, ends, strict=False):
            found = _logged(each, key)
            if found:
                parts.append(([start + step for step, _ in found], [value for _, value in found]))
        if parts:
            series.append((label, parts))
    return series, ends[1:-1]


def displacement_verdict(rounds: Rounds) -> str:
    """How far each log-likelihood moved from the first to the second half of a round's log lines, averaged over rounds, in words.

    Empty if no round has two lines.
    """
    moves = []
    for key in _LOG_LIKELIHOODS:
        lines = [[value for _, value in _logged(each, key)] for each in rounds.done]
        halves = [(values[: len(values) // 2], values[len(values) // 2 :]) for values in lines if len(values) > 1]
        moves.append([_mean(second) - _mean(first) for first, second in halves])
    guided, plain = moves
    if not guided or not plain:
        return ""
    conclusion = {
        (True, True): "both fall",
        (False, True): "the worse response of a couple falls, the better one does not",
        (True, False): "the better response of a couple falls, the worse one does not",
        (False, False): "neither falls",
    }[_mean(guided) < 0, _mean(plain) < 0]
    parts = [
        f"{_mean(changes):+.3f} {label} (down in {sum(change < 0 for change in changes)} of {pluralize(len(changes), 'round')})"
        for changes, label in zip(moves, reversed(rounds.sides), strict=True)
    ]
    return (
        f"From the first to the second half of a round's log lines, the log-likelihood of ranked responses changes by {parts[0]} and "
        f"{parts[1]}, in nats per token: {conclusion}."
    )


def side_by_side(rounds: Rounds) -> tuple[int, list[dict[str, Any]]]:
    """The rounds before the last evaluation, and each held-out prompt with its first (`base`) and last (`policy`) completion."""
    last = next((each for each in reversed(rounds.evaluations) if each.samples), None)
    first = rounds.evaluations[0]
    if last is None or last is first:
        return 0, []
    pairs = [
        {
            "prompt": before["prompt"],
            "base": before["completion"],
            "policy": after["completion"],
            "base_rewards": before.get("rewards", {}),
            "rewards": after.get("rewards", {}),
        }
        for before, after in zip(first.samples, last.samples, strict=False)
        if before["prompt"] == after["prompt"]
    ]
    return last.rounds_done, pairs


# -- the table -------------------------------------------------------------------------------------------------------------


def table(rounds: Rounds) -> tuple[list[str], list[list[str]]]:
    """Header and cells, one row per round. A dash marks a missing value."""
    used = {name for each in rounds.done for name in each.costs.get("seconds", {})}
    phases = [name for name in PHASES if name in used] + sorted(used - set(PHASES))
    head = ["round", "τ", "threshold τ·σ₀", *_BRANCHES]
    head += [f"mean reward, {side}" for side in rounds.sides]
    head += ["optimiser steps", "tokens generated", *(f"seconds, {name}" for name in phases)]
    rows = []
    for each in rounds.done:
        manifest, costs = each.manifest, each.costs
        branches, rewards = manifest.get("branches", {}), manifest.get("rewards", {})
        means = [rewards.get(side, {}).get("mean") for side in ("plain", "guided")]
        rows.append(
            [
                str(each.number),
                _cell(manifest.get("tau"), ".3f"),
                _cell(manifest.get("threshold"), ".3f"),
                *(_cell(branches.get(name), ",d") for name in _BRANCHES),
                *(_cell(mean, ".3f") for mean in means),
                _cell(manifest.get("optimizer_steps"), ",d"),
                _cell(costs.get("generated_tokens"), ",d"),
                *(_cell(costs.get("seconds", {}).get(name), ",.1f") for name in phases),
            ]
        )
    return head, rows


# -- small things ------------------------------------------------------------------------------------------------------------


def _logged(each: FinishedRound, key: str) -> list[tuple[int, float]]:
    """(step of the round, value) of the log lines with this key."""
    return [(int(line["step"]), float(line[key])) for line in each.log if "step" in line and _is_number(line.get(key))]


def _at(content: Mapping[str, Any], keys: Sequence[str]) -> Any:
    """The value under these nested keys; None if one is missing."""
    found: Any = content
    for key in keys:
        found = found.get(key) if isinstance(found, Mapping) else None
    return found


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _cell(value: Any, form: str) -> str:
    return format(value, form) if _is_number(value) else "—"
