"""Curves over a training: the training reward, and the reward on the test prompts."""

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
"""x and y of a curve's points."""


def learning(rows: Sequence[Row]) -> Figure | None:
    """The training reward over the training, first seed, of every method that logs one."""

    def read(run: Path, log: Sequence[dict[str, Any]]) -> Curve:
        known = [line for line in log if is_number(line.get("reward")) and "step" in line]
        return [line["step"] / known[-1]["step"] for line in known], [line["reward"] for line in known]

    return _curves(
        rows,
        read,
        ("share of the training", "training reward"),
        "Learning curves",
        "The reward of the responses that a method trains on, first seed. It should rise. If the judge does not rise with it, the method may be "
        "hacking the reward.",
    )


def on_test(rows: Sequence[Row]) -> Figure | None:
    """The reward on the test prompts over the training prompts seen, first seed, of lines with `eval_steps`."""

    def read(run: Path, log: Sequence[dict[str, Any]]) -> Curve:
        evaluated = [line for line in log if is_number(line.get("eval_reward"))]
        each = _prompts_per_step(run) if evaluated else 0.0
        return [line["step"] * each for line in evaluated], [line["eval_reward"] for line in evaluated]

    return _curves(
        rows,
        read,
        ("training prompts seen", "training reward on the test prompts"),
        "Test score over the training prompts",
        "The reward on the test prompts during training, first seed, with the same noise at every evaluation. Nothing was chosen by it.",
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
    """A curve for each line with at least two points. `read`: from the run folder and log of a line's first seed to its points."""
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


def _prompts_per_step(run: Path) -> float:
    """Training prompts per optimiser step of a proxy: the prompts of a rollout over its steps."""
    config = read_settings(run)
    prompts = config["per_device_train_batch_size"] / config["num_generations"]
    return float(prompts / (config["num_iterations"] * config["num_mini_batches"]))


def is_number(value: Any) -> bool:
    """Whether a value is a number; a bool is not."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)
