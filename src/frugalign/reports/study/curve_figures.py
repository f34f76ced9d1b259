"""Curves over a training: the training reward as it goes, and the reward on the test's prompts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from frugalign.reports.figures import data_uri
from frugalign.reports.study.style import Figure, axes_of, colour_of, legend_beside, style_of
from frugalign.runs.layout import read_log, read_settings
from frugalign.study.layout import training_run
from frugalign.study.table import Row

Curve = tuple[Sequence[float], Sequence[float]]
"""Where a line's points lie, and how high."""


def learning(rows: Sequence[Row]) -> Figure | None:
    """The training reward over training, first seed, of every method that logs one."""

    def read(run: Path, log: Sequence[dict[str, Any]]) -> Curve:
        known = [line for line in log if is_number(line.get("reward")) and "step" in line]
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
        looks = [line for line in log if is_number(line.get("eval_reward"))]
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


def is_number(value: Any) -> bool:
    """Whether a value is a number, and not a truth value."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)
