"""The hypothesis behind re-ranking (`docs/methods/rerank.md#rankings-and-samples`), tested on a run's log: two figures and one sentence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from frugalign.reports import figures
from frugalign.runs.layout import ShiftStart

_SERIES = (("log-likelihood", "log_likelihood"), ("reward, frozen probes", "probe_reward"))
_CHANGED = 0.9
"""A ranking counts as changed where the interval of its correlation with the start stays below this."""


@dataclass(frozen=True)
class Shift:
    """`figures`: (alternative text, data URI) each; `verdict`: one sentence on the last measurement."""

    figures: list[tuple[str, str]]
    verdict: str


def shift_of(log: Sequence[Mapping[str, Any]], about: ShiftStart | None) -> Shift | None:
    """The figures and the verdict from a run's log. `about`: what the shift was measured with. None where it was not measured."""
    looks = [line for line in log if "shift/wasserstein" in line]
    if not looks or about is None:
        return None
    rankings = []
    for label, name in _SERIES:
        key = f"shift/{name}_spearman"
        found = [line for line in looks if key in line]
        if found:
            values = [(line[key], line[f"{key}_low"], line[f"{key}_high"]) for line in found]
            rankings.append((label, [line["step"] for line in found], values))
    floor = (about["floor"]["mean"], about["floor"]["high"])
    steps, distances = [line["step"] for line in looks], [line["shift/wasserstein"] for line in looks]
    drawn = [
        (
            "distance of the policy's samples from the start's, over training",
            figures.distances(steps, distances, floor, f"Wasserstein distance, {about['reward']}"),
        )
    ]
    if rankings:
        text = "rank correlations of stored responses with the start, over training"
        drawn.insert(0, (text, figures.with_intervals(rankings, "rank correlation with the start", "step")))
    return Shift(drawn, verdict([(label, values[-1]) for label, _, values in rankings], distances[-1], floor))


def verdict(
    rankings: Sequence[tuple[str, tuple[float, float, float]]], distance: float, floor: tuple[float, float]
) -> str:
    """One sentence on the last measurement. `rankings`: (label, (mean, low, high)) each."""
    changed = [label for label, (_, _, high) in rankings if high < _CHANGED]
    stayed = distance <= floor[1]
    said = ", ".join(f"{label} {mean:.2f} [{low:.2f}, {high:.2f}]" for label, (mean, low, high) in rankings)
    numbers = f"(rank correlations with the start: {said}; distance {distance:.3f}, two sample sets of the start {floor[0]:.3f}, at most {floor[1]:.3f})"
    if changed and stayed:
        return f"The hypothesis holds for this run: rankings changed, and the policy's own samples stayed where they were {numbers}."
    if changed:
        return (
            f"The hypothesis does not hold for this run: rankings changed, and so did the policy's own samples {numbers}; "
            "the stored responses represent the policy's own less and less."
        )
    if stayed:
        return f"This run decides nothing: neither rankings nor samples moved much {numbers}."
    return f"The hypothesis does not hold for this run: the samples moved, and the rankings hardly did {numbers}."
