"""The highest test reward within a distance of the base: proxies and TRL's RLOO on stories, with as many samples each.

    FRUGALIGN_TRIALS=folder python -m experiments.frontier [--jobs 1] [--only LABEL ...] [--smoke]

Runs `studies/stories-frontier.yaml`, where every setting of a sweep is a line. Finished cells are skipped. A row has the best of a sweep's settings
within 5, 10 and 20 nats, measured on the test prompts. Rows of lines that `--only` leaves out stay as they were recorded.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.smoke import STUDIES, finished_rows
from experiments.summary import RESULTS, script_options, write_summary

from frugalign.base.json_files import read_json
from frugalign.reports.figures import canvas, tidy
from frugalign.reports.study.style import BASE, COLOURS
from frugalign.study.plan import Line, lines_of, swept
from frugalign.study.table import Row

STUDY = STUDIES / "stories-frontier.yaml"
FIGURE = Path("docs/img/frontier.png")
WITHIN = (5, 10, 20)
"""Nats a response."""


def point(row: Row) -> list[float] | None:
    """Mean reward, its interval, and the mean KL; None where one of them was not measured."""
    kl = row.others["kl_per_sequence"]
    if row.main is None or kl is None:
        return None
    value = row.main.value
    return [value.mean, value.ci_low, value.ci_high, kl.mean]


def best_within(points: Sequence[list[float]], most: float) -> list[float] | None:
    """The point with the highest reward among those within `most` nats."""
    return max((each for each in points if each[3] <= most), default=None)


def summarised(line: Line, rows: Sequence[Row]) -> dict[str, Any]:
    """A line's row: its best points, all of them, and its costs."""
    labels = {each.label for each in swept(line)}
    own = [row for row in rows if row.line.label in labels]
    points = sorted((found for row in own if (found := point(row)) is not None), key=lambda each: each[3])
    return {
        **{f"KL ≤ {most}": best_within(points, most) for most in WITHIN},
        "seconds": statistics.median(row.costs["wall_clock_seconds"] for row in own),
        "memory, MB": statistics.median(row.costs["peak_memory_mb"] for row in own),
        "trained numbers": own[0].trainable_parameters or 0,
        "points": points,
    }


def draw(rows: Mapping[str, Mapping[str, Any]], base: float, file: Path) -> None:
    """Reward against KL: every point with its interval. A line joins those that no nearer point beats."""
    figure = canvas(7.4, 4.2)
    axes = figure.subplots()
    for place, (label, row) in enumerate(rows.items()):
        points = row["points"]
        rewards, kls = [each[0] for each in points], [each[3] for each in points]
        spread = [[each[0] - each[1] for each in points], [each[2] - each[0] for each in points]]
        colour = COLOURS[place % len(COLOURS)]
        axes.errorbar(kls, rewards, yerr=spread, color=colour, marker="o", markersize=4, linestyle="", capsize=2)
        frontier = [each for each in points if all(each[0] >= other[0] for other in points if other[3] <= each[3])]
        axes.plot(
            [each[3] for each in frontier],
            [each[0] for each in frontier],
            color=colour,
            linewidth=1.4,
            label=label,
        )
    axes.axhline(base, color=BASE, linewidth=1, linestyle=":")
    axes.set_xlim(0, 25)
    axes.set_xlabel("KL to the base, nats a response")
    axes.set_ylabel("test reward")
    axes.legend(frameon=False, fontsize=8, loc="upper left")
    tidy(axes)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=130)


def main() -> None:
    only = {"--only": {"nargs": "*", "default": []}}
    given = script_options(__doc__, jobs={"type": int, "default": 1}, **only)
    options, rows = finished_rows(STUDY, is_smoke=given.smoke, jobs=given.jobs, only=given.only)
    base = next(found for row in rows if row.line.label == "base" and (found := point(row)) is not None)
    recorded = {} if given.smoke else read_json(RESULTS / "stories-frontier.json").get("rows", {})
    trained = [line for line in lines_of(options) if line.label != "base"]
    found = recorded | {line.label: summarised(line, rows) for line in trained} | {"base": {"reward": base[:3]}}
    drawn = {label: row for label, row in found.items() if "points" in row}
    if given.smoke:
        draw(drawn, base[0], Path("runs/smoke/frontier.png"))
        return
    draw(drawn, base[0], FIGURE)
    command = "FRUGALIGN_TRIALS=folder python -m experiments.frontier"
    model = "stories260k, a Llama of 0.26 million parameters"
    facts = {"budget": options.budget, "cells": "reward: mean, low, high; then the KL on the test prompts"}
    write_summary("stories-frontier", command, model, found, facts)


if __name__ == "__main__":
    main()
