"""Pictures of docs/results.md from the JSON files in benchmarks/results: a study's quality against cost, and PSLE with one thing changed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from frugalign.study.figures import pareto

_POINT, _FRONT, _BASE = "#0b6e4f", "#b9bec5", "#8a8f98"
_TASKS = {
    "sandbox": ("gold", "Sandbox: gold, to PSLE"),
    "chat": ("judged_safety", "chat-3m: judge, to PSLE"),
    "stories": ("sad_words", "Stories: sad words of 100, to PSLE"),
}
"""Task: its main measure, and what the panel is called."""


def quality_against_cost(result: Mapping[str, Any], file: Path) -> None:
    """A study's main judge over the tokens that training fed through the model; the grey line joins what no other method beats at its cost."""
    lines = [(line, line["measures"][result["judge"]]["value"]) for line in result["lines"]]
    trained = [(line, value) for line, value in lines if line["costs"]["lm_forward_tokens"] > 0]
    base = next((value["mean"] for line, value in lines if line["method"] == "base"), None)
    figure, axes = plt.subplots(figsize=(8.5, 5.0), constrained_layout=True)
    points = [(line["costs"]["lm_forward_tokens"], value["mean"]) for line, value in trained]
    front = sorted(pareto(points), key=lambda number: points[number][0])
    axes.plot(*zip(*(points[number] for number in front), strict=True), color=_FRONT, linewidth=1.2, zorder=1)
    for line, value in trained:
        _with_interval(axes, line["costs"]["lm_forward_tokens"], value["mean"], value["ci_low"], value["ci_high"])
        at = (line["costs"]["lm_forward_tokens"], value["mean"])
        axes.annotate(line["label"], at, textcoords="offset points", xytext=(6, 4), fontsize=8)
    if base is not None:
        axes.axhline(base, color=_BASE, linestyle="--", linewidth=1.0)
        axes.annotate("base", (0.01, base), xycoords=("axes fraction", "data"), fontsize=8, va="bottom", color=_BASE)
    axes.set_xscale("log")
    axes.set_xlabel("tokens fed through the language model in training (log)")
    axes.set_ylabel(str(result["judge"]).replace("_", " "))
    _save(figure, axes, file)


def one_thing_changed(results: Mapping[str, Mapping[str, Any]], file: Path) -> None:
    """How far each other method and each ablation is from PSLE, a panel for each task that is measured; `results`: by task."""
    shown = {task: found for task, found in results.items() if "methods" in found}
    parts = {task: [("methods", 0), ("ablations", 1)] for task in shown}
    counts = [sum(len(shown[task].get(part, {})) for part, _ in parts[task]) for task in shown]
    figure, panels = plt.subplots(
        len(shown),
        1,
        figsize=(8.0, 0.6 * len(shown) + 0.3 * sum(counts)),
        constrained_layout=True,
        height_ratios=counts,
    )
    for axes, (task, found) in zip(_several(panels), shown.items(), strict=True):
        measure, title = _TASKS[task]
        names: list[str] = []
        for part, look in parts[task]:
            for name, row in found.get(part, {}).items():
                gap = row["difference"][measure]
                if not any(gap.values()):
                    continue  # PSLE itself
                at = len(names)
                names.append(f"PSLE, {name}" if look else name.replace("_", " "))
                error = [[gap["mean"] - gap["low"]], [gap["high"] - gap["mean"]]]
                axes.errorbar(
                    gap["mean"],
                    at,
                    xerr=error,
                    fmt="s" if look else "o",
                    color="#c2571a" if look else _POINT,
                    capsize=2,
                )
        axes.axvline(0.0, color=_BASE, linestyle="--", linewidth=1.0)
        axes.set_yticks(range(len(names)), names, fontsize=8)
        axes.invert_yaxis()
        axes.set_title(title, fontsize=10, loc="left")
        _plain(axes)
    figure.savefig(file, dpi=130)
    plt.close(figure)


def _several(panels: Any) -> Sequence[Any]:
    return list(panels) if hasattr(panels, "__len__") else [panels]


def _with_interval(axes: Any, x: float, y: float, low: float, high: float) -> None:
    axes.errorbar(x, y, yerr=[[max(0.0, y - low)], [max(0.0, high - y)]], fmt="o", color=_POINT, capsize=2, zorder=2)


def _plain(axes: Any) -> None:
    axes.spines[["top", "right"]].set_visible(False)


def _save(figure: Any, axes: Any, file: Path) -> None:
    _plain(axes)
    figure.savefig(file, dpi=130)
    plt.close(figure)
