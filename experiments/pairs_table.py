"""From the trainings of `experiments.pairs` to its table and figure: gold at equal KL, by interpolation along every training."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from frugalign.metrics.two_way import two_way_mean
from frugalign.reports.figures import canvas, tidy
from frugalign.reports.study.style import BASE, COLOURS

MARKERS = "osD^vPX*"


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


@dataclass(frozen=True)
class Training:
    """One training: its `points` in order, from the base, and the one that it keeps. A point has lists `gold`, `kl` and `well_formed`."""

    points: list[dict[str, Any]]
    kept: dict[str, Any]
    costs: dict[str, float]
    trained: int

    @property
    def furthest(self) -> float:
        """The largest KL that it reaches."""
        return max(mean(point["kl"]) for point in self.points)

    def at(self, kl: float) -> list[float]:
        """Gold of every prompt where the training first reaches this KL, between two points; of its furthest point if it stays nearer."""
        before = self.points[0]
        for point in self.points[1:]:
            low, high = mean(before["kl"]), mean(point["kl"])
            if low <= kl <= high:
                share = 0.0 if high == low else (kl - low) / (high - low)
                return [a + share * (b - a) for a, b in zip(before["gold"], point["gold"], strict=True)]
            before = point
        return list(max(self.points, key=lambda point: mean(point["kl"]))["gold"])


def training(base: dict[str, Any], found: dict[str, Any], kept: dict[str, Any]) -> Training:
    """A training from its file and that of the base. The points of a proxy are those of its strengths."""
    strengths = found.get("strengths") or {}
    points = [*strengths.values(), kept] if strengths else found["points"]
    return Training([base, *points], kept, found["costs"], found["trained"])


Table = Sequence[Sequence[float]]


def interval(values: Table) -> list[float] | None:
    """`[mean, low, high]` over seeds and prompts."""
    found = two_way_mean(values)
    return None if found is None else [found.estimate.mean, found.estimate.ci_low, found.estimate.ci_high]


def minus(first: Sequence[float], second: Sequence[float]) -> list[float]:
    """Differences, prompt by prompt."""
    return [a - b for a, b in zip(first, second, strict=True)]


def row(mine: Sequence[Training], proxy: Sequence[Training]) -> dict[str, Any]:
    """A line's columns. `proxy`: the trainings that it is compared with, on the same seeds.

    "proxy minus this": gold of the two where both trainings have the same KL, which is the proxy's own or, if this line never gets as far, this line's largest.
    """
    level = [min(mean(each.kept["kl"]), other.furthest) for each, other in zip(proxy, mine, strict=True)]
    theirs = [each.at(kl) for each, kl in zip(proxy, level, strict=True)]
    ours = [each.at(kl) for each, kl in zip(mine, level, strict=True)]
    return {
        "gold": interval([each.kept["gold"] for each in mine]),
        "KL, nats": mean([mean(each.kept["kl"]) for each in mine]),
        "proxy minus this": None if mine is proxy else interval([minus(a, b) for a, b in zip(theirs, ours, strict=True)]),
        "at KL, nats": None if mine is proxy else mean(level),
        "gold minus proxy's": None
        if mine is proxy
        else interval([minus(a.kept["gold"], b.kept["gold"]) for a, b in zip(mine, proxy, strict=True)]),
        "well-formed, worst seed, %": 100 * min(mean(each.kept["well_formed"]) for each in mine),
        "well-formed at the end, worst seed, %": 100 * min(mean(each.points[-1]["well_formed"]) for each in mine),
        "KL at the end, worst seed, nats": max(mean(each.points[-1]["kl"]) for each in mine),
        "CPU seconds": statistics.median(each.costs["seconds"] for each in mine),
        "tokens fed, thousands": mean([each.costs["tokens fed"] for each in mine]) / 1000,
        "tokens sampled, thousands": mean([each.costs["tokens sampled"] for each in mine]) / 1000,
        "trained numbers": mine[0].trained,
        "seeds": len(mine),
    }  # fmt: skip


def draw(panels: Mapping[str, Mapping[str, Sequence[Training]]], file: Path) -> None:
    """Gold against KL, one panel for each share of wrong labels. A line joins the means over seeds at the measured steps, or strengths of a proxy; a large marker is what a training keeps."""
    figure = canvas(5.4 * len(panels), 4.4)
    axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)
    labels = list(dict.fromkeys(label for lines in panels.values() for label in lines))
    for axis, (title, lines) in zip(axes[0], panels.items(), strict=True):
        for label, trainings in lines.items():
            number = labels.index(label)
            colour, marker = COLOURS[number % len(COLOURS)], MARKERS[number % len(MARKERS)]
            steps = min(len(each.points) for each in trainings)
            kl, gold = (
                [mean([mean(each.points[n][name]) for each in trainings]) for n in range(steps)]
                for name in ("kl", "gold")
            )
            axis.plot(
                kl,
                gold,
                color=colour, marker=marker, markersize=3.5, linewidth=1.6, label=label,
            )  # fmt: skip
            for each in trainings:
                axis.plot(
                    mean(each.kept["kl"]),
                    mean(each.kept["gold"]),
                    color=colour,
                    marker=marker,
                    markersize=7,
                    alpha=0.55,
                    linestyle="",
                )
        start = next(iter(lines.values()))
        axis.axhline(mean([mean(each.points[0]["gold"]) for each in start]), color=BASE, linewidth=1, linestyle=":")
        axis.set_xscale("symlog", linthresh=0.1)
        axis.set_xticks([0, 0.1, 0.3, 1, 3], ["0", "0.1", "0.3", "1", "3"])
        axis.set_xlim(left=0)
        axis.set_title(title)
        axis.set_xlabel("KL to the base, nats an answer")
        tidy(axis)
    axes[0][0].set_ylabel("gold")
    handles = {label: line for axis in axes[0] for line, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles, frameon=False, fontsize=9, loc="outside right upper")
    figure.savefig(file, dpi=110)
