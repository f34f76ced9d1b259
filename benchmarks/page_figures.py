"""Pictures of docs/results.md from the JSON files in benchmarks/results: a study's quality against cost, and PSLE with one thing changed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from frugalign.metrics import Estimate
from frugalign.reports.study_figures import cost_figure
from frugalign.reports.study_style import mark_of

_POINT, _BASE = "#0b6e4f", "#8a8f98"
_TASKS = {
    "sandbox": ("gold", "Sandbox: gold, to PSLE"),
    "chat": ("judged_safety", "chat-3m: judge, to PSLE"),
    "stories": ("sad_words", "Stories: sad words of 100, to PSLE"),
}
"""Task: its main measure, and what the panel is called."""
_PARTS = (("methods", "{}", "o", _POINT), ("ablations", "PSLE, {}", "s", "#c2571a"))
"""Part of a result: what its rows are called, their marker and colour."""


def quality_against_cost(result: Mapping[str, Any], file: Path) -> None:
    """A study's main judge over the tokens that training fed through the model."""
    values = {line["label"]: line["measures"].get(result["judge"], {}).get("value") for line in result["lines"]}
    lines = [line for line in result["lines"] if line["method"] != "base"]
    points = [
        (
            line["label"],
            line["costs"]["lm_forward_tokens"],
            Estimate(**values[line["label"]]),
            *mark_of(number),
        )
        for number, line in enumerate(lines)
        if line["costs"]["lm_forward_tokens"] > 0 and values[line["label"]] is not None
    ]
    base = next((line["label"] for line in result["lines"] if line["method"] == "base"), None)
    level = None if base is None or values[base] is None else values[base]["mean"]
    figure = cost_figure(points, level, str(result["judge"]).replace("_", " "))
    figure.savefig(file, dpi=130, bbox_inches="tight")


def one_thing_changed(results: Mapping[str, Mapping[str, Any]], file: Path) -> None:
    """How far each other method and each ablation is from PSLE, a panel for each task that is measured; `results`: by task."""
    shown = {task: found for task, found in results.items() if "methods" in found}
    counts = [sum(len(found.get(part, {})) for part, *_ in _PARTS) for found in shown.values()]
    figure, panels = plt.subplots(
        len(shown),
        1,
        figsize=(8.0, 0.6 * len(shown) + 0.3 * sum(counts)),
        constrained_layout=True,
        height_ratios=counts,
        squeeze=False,
    )
    for axes, (task, found) in zip(panels[:, 0], shown.items(), strict=True):
        measure, title = _TASKS[task]
        names: list[str] = []
        for part, called, marker, colour in _PARTS:
            for name, row in found.get(part, {}).items():
                gap = row["difference"][measure]
                if not any(gap.values()):
                    continue  # PSLE itself
                at = len(names)
                names.append(called.format(name.replace("_", " ")))
                error = [[gap["mean"] - gap["low"]], [gap["high"] - gap["mean"]]]
                axes.errorbar(gap["mean"], at, xerr=error, fmt=marker, color=colour, capsize=2)
        axes.axvline(0.0, color=_BASE, linestyle="--", linewidth=1.0)
        axes.set_yticks(range(len(names)), names, fontsize=8)
        axes.invert_yaxis()
        axes.set_title(title, fontsize=10, loc="left")
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(file, dpi=130)
    plt.close(figure)
