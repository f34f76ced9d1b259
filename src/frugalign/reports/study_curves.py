"""Figures over a training and over a setting: learning curves, test curves, and what each value of a swept number gives."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from frugalign.reports.figures import canvas, data_uri, tidy
from frugalign.reports.study_style import (
    BASE,
    COLOURS,
    Figure,
    axes_of,
    colour_of,
    legend_beside,
    main_of,
    style_of,
    values_of,
)
from frugalign.runs.layout import read_log, read_settings
from frugalign.study.layout import training_run
from frugalign.study.table import Row


def sweeps(rows: Sequence[Row]) -> list[tuple[str, list[Row]]]:
    """(name of a number, lines that differ in it alone, in its order): what a sweep without `choose` leaves."""
    found: dict[tuple[str, str, str], list[Row]] = {}
    for row in rows:
        for name, value in row.line.setting.items():
            if _is_number(value):
                rest = {other: each for other, each in row.line.setting.items() if other != name}
                found.setdefault((row.line.method, name, repr(sorted(rest.items()))), []).append(row)
    return [
        (name, sorted(same, key=lambda row: float(row.line.setting[name])))
        for (_, name, _), same in found.items()
        if len({row.line.setting[name] for row in same}) >= 3
    ]


def settings(rows: Sequence[Row], judge: str) -> list[Figure]:
    """For lines that differ in one number: the main judge over it, its distribution at each value beside SFT's, and the learning curves."""
    found = []
    sft = next((row for row in rows if row.line.method == "sft"), None)
    for name, same in sweeps(rows):
        method = same[0].line.method
        at, values = [float(row.line.setting[name]) for row in same], [main_of(row) for row in same]
        figure, axes = axes_of(7.4, 3.4)
        axes.plot(at, [value.mean for value in values], color=COLOURS[0], marker="o", markersize=4)
        axes.fill_between(
            at, [value.ci_low for value in values], [value.ci_high for value in values], color=COLOURS[0], alpha=0.15
        )
        if min(at) > 0 and max(at) / min(at) >= 10:
            axes.set_xscale("log")
        axes.set_xlabel(name)
        axes.set_ylabel(judge)
        caption = f"The test's {judge} over {name}, everything else as it is."
        found.append(Figure(f"{method}: {judge} over {name}", data_uri(figure), caption))
        found.append(_panels(same, name, judge, sft))
        for curves in (learning(same), on_test(same)):
            if curves is not None:
                found.append(Figure(f"{method}: {_lowered(curves.title)} at each {name}", curves.uri, curves.caption))
    return found


def _panels(same: Sequence[Row], name: str, judge: str, sft: Row | None) -> Figure:
    """A histogram for each value of a setting, SFT's in grey behind each."""
    figure = canvas(min(4, len(same)) * 2.6, 2.6 * -(-len(same) // 4))
    bins = None
    for place, row in enumerate(same):
        axes = figure.add_subplot(-(-len(same) // 4), min(4, len(same)), place + 1)
        tidy(axes, "both")
        own, behind = values_of(row), [] if sft is None else values_of(sft)
        bins = bins if bins is not None else _bins([value for each in same for value in values_of(each)] + behind)
        for values, colour, label in ((behind, BASE, "sft"), (own, COLOURS[0], row.line.method)):
            if values:
                axes.hist(
                    values, bins=bins, weights=[1 / len(values)] * len(values), alpha=0.55, color=colour, label=label
                )
        axes.set_title(f"{name} {row.line.setting[name]:g}", fontsize=9)
        axes.set_xlabel(judge)
        if place == 0:
            axes.legend(frameon=False, fontsize=7)
    caption = f"How the test's {judge} is distributed at each {name}" + ("; SFT in grey." if sft is not None else ".")
    return Figure(f"{same[0].line.method}: distributions over {name}", data_uri(figure), caption)


def _bins(values: Sequence[float]) -> list[float]:
    low, high = min(values), max(values)
    return [low + (high - low or 1.0) * place / 24 for place in range(25)]


Curve = tuple[Sequence[float], Sequence[float]]
"""Where a line's points lie, and how high."""


def learning(rows: Sequence[Row]) -> Figure | None:
    """The training reward over training, first seed, of every method that logs one."""

    def read(run: Path, log: Sequence[dict[str, Any]]) -> Curve:
        known = [line for line in log if _is_number(line.get("reward")) and "step" in line]
        return [line["step"] / known[-1]["step"] for line in known], [line["reward"] for line in known]

    return _curves(
        rows,
        read,
        ("share of the training", "training reward"),
        "Learning curves",
        "The reward of the responses that a method trains on, as it goes, first seed. It should rise; a judge that does not follow it is the sign of a gamed reward.",
    )


def on_test(rows: Sequence[Row]) -> Figure | None:
    """The training reward on the test's prompts over the training prompts seen, first seed, of lines with `eval_steps`."""

    def read(run: Path, log: Sequence[dict[str, Any]]) -> Curve:
        looks = [line for line in log if _is_number(line.get("eval_reward"))]
        each = _prompts_a_step(run) if looks else 0.0
        return [line["step"] * each for line in looks], [line["eval_reward"] for line in looks]

    return _curves(
        rows,
        read,
        ("training prompts seen", "training reward on the test's prompts"),
        "Test score over the training prompts",
        "The reward on the test's prompts as training goes, first seed, the same noise at every look; nothing was chosen by it.",
        marker="o",
    )


def _curves(
    rows: Sequence[Row],
    read: Callable[[Path, Sequence[dict[str, Any]]], Curve],
    labels: tuple[str, str],
    title: str,
    caption: str,
    marker: str | None = None,
) -> Figure | None:
    """A curve for each line of whose first run `read` (the run folder, its log) finds two points at least."""
    figure, axes = axes_of(7.4, 3.8)
    drawn = 0
    for row in rows:
        run = training_run(row.outcomes[0].training)
        at, values = read(run, read_log(run))
        if len(at) < 2:
            continue
        axes.plot(
            at, values, color=colour_of(rows, row), linestyle=style_of(rows, row), label=row.line.label, linewidth=1.5,
            marker=marker, markersize=3,
        )  # fmt: skip
        drawn += 1
    if not drawn:
        return None
    axes.set_xlabel(labels[0])
    axes.set_ylabel(labels[1])
    axes.locator_params(axis="x", steps=[1, 2, 5, 10])
    legend_beside(axes)
    return Figure(title, data_uri(figure), caption)


def _prompts_a_step(run: Path) -> float:
    """Training prompts for each of a proxy's optimiser steps: those of a rollout over its steps."""
    config = read_settings(run)
    prompts = config["per_device_train_batch_size"] / config["num_generations"]
    return float(prompts / (config["num_iterations"] * config["num_mini_batches"]))


def _lowered(title: str) -> str:
    return title[0].lower() + title[1:]


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
