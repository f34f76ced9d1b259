"""A study's figures: quality against cost and KL, distributions, win rates, settings and learning curves. Each caption says what to see."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from frugalign.artifacts import read_lines
from frugalign.evaluation.figures import canvas, data_uri, tidy
from frugalign.metrics import Estimate
from frugalign.study.comparing import Row
from frugalign.study.plan import RUN_FOLDER
from frugalign.study.responses import responses_of
from frugalign.training.run_folder import CONFIG_FILE

COLOURS = (
    "#0b6e4f",
    "#c2571a",
    "#5b4b8a",
    "#1f6fb2",
    "#a8324a",
    "#6b7a1e",
    "#0f8b8d",
    "#b8860b",
    "#7a4a2b",
    "#d26a9c",
)
_BASE = "#8a8f98"
_NAMED_IN_PLACE = 9
"""Points that can be named where they lie."""


@dataclass(frozen=True)
class Figure:
    """A drawing as a data URI, and its caption."""

    title: str
    uri: str
    caption: str


def figures_of(every: Sequence[Row], judge: str, reference: str) -> list[Figure]:
    """Every figure that these rows have the numbers for; `reference`: what they are compared with, in words."""
    rows = [row for row in every if row.main is not None]
    found = [
        against_cost(rows, judge),
        against_kl(rows, judge),
        wins(rows, judge, reference),
        distributions(rows, judge),
    ]
    found += settings(rows, judge)
    found += [learning(rows), on_test(rows)]
    return [figure for figure in found if figure is not None]


def colour_of(rows: Sequence[Row], row: Row) -> str:
    """A line's colour: the base is grey."""
    return _BASE if row.line.method == "base" else COLOURS[_number_of(rows, row) % len(COLOURS)]


def style_of(rows: Sequence[Row], row: Row) -> str:
    """How a line is drawn: another way for each time that the colours come round."""
    return "-" if row.line.method == "base" else ("-", "--", ":", "-.")[_number_of(rows, row) // len(COLOURS) % 4]


def marker_of(rows: Sequence[Row], row: Row) -> str:
    """How a line's point is drawn: as its line, another way for each time that the colours come round."""
    return "o" if row.line.method == "base" else "osD^"[_number_of(rows, row) // len(COLOURS) % 4]


def _number_of(rows: Sequence[Row], row: Row) -> int:
    return [each.line.label for each in rows if each.line.method != "base"].index(row.line.label)


def _mean(row: Row) -> Estimate:
    """The main judge's, of a row that has one."""
    assert row.main is not None
    return row.main.value


def pareto(points: Sequence[tuple[float, float]]) -> list[int]:
    """Numbers of the (cost, quality) points that no other one beats: none costs at most as much and is better, or costs less and is as good."""
    return [
        number
        for number, (cost, quality) in enumerate(points)
        if not any(
            (other <= cost and better > quality) or (other < cost and better >= quality) for other, better in points
        )
    ]


Point = tuple[str, float, Estimate, str, str]
"""A line in a plane: label, where it lies, its quality, colour and marker."""


def against_cost(rows: Sequence[Row], judge: str) -> Figure | None:
    """The main judge against the tokens that training fed through a language model."""
    trained = [row for row in rows if row.costs["lm_forward_tokens"] > 0]
    if len(trained) < 2:
        return None
    points = [_point_of(rows, row, row.costs["lm_forward_tokens"]) for row in trained]
    base = next((_mean(row).mean for row in rows if row.line.method == "base"), None)
    return Figure(
        "Quality against cost",
        data_uri(cost_figure(points, base, judge)),
        "Up and to the left is better. The grey line joins what no other method beats at its cost; the dashed one is the base. Bars are 95 % intervals.",
    )


def cost_figure(points: Sequence[Point], base: float | None, judge: str) -> Any:
    """A matplotlib figure of quality over the tokens fed, the line of what nothing beats at its cost, and the base's quality."""
    figure, axes = _axes(7.4, 4.4)
    front = sorted(pareto([(point[1], point[2].mean) for point in points]), key=lambda number: points[number][1])
    axes.plot(
        [points[number][1] for number in front], [points[number][2].mean for number in front],
        color="#b9bec5", linewidth=1.2, zorder=1,
    )  # fmt: skip
    axes.set_xscale("log")
    _draw(axes, points)
    if base is not None:
        axes.axhline(base, color=_BASE, linestyle="--", linewidth=1.2)
    axes.set_xlabel("tokens fed through the language model in training (log)")
    axes.set_ylabel(judge)
    return figure


def against_kl(rows: Sequence[Row], judge: str) -> Figure | None:
    """The main judge against the KL to the base."""
    placed = [(row, row.others["kl_per_sequence"]) for row in rows]
    known = [(row, kl) for row, kl in placed if kl is not None]
    if len(known) < 2:
        return None
    figure, axes = _axes(7.4, 4.4)
    _draw(axes, [_point_of(rows, row, max(kl.mean, 0.0)) for row, kl in known])
    axes.set_xscale("symlog", linthresh=0.1)
    axes.set_xlim(left=0)
    axes.set_xlabel("KL to the base, nats a response")
    axes.set_ylabel(judge)
    return Figure(
        "Quality against distance from the base",
        data_uri(figure),
        "What a method gains for how far it moves. A reward that is gamed shows as a large KL without gain; best-of-n's KL is its known upper bound.",
    )


def wins(rows: Sequence[Row], judge: str, reference: str) -> Figure | None:
    """Win rates against the reference, plain and with length held."""
    shown = [row for row in rows if row.win_rate is not None]
    if not shown:
        return None
    figure, axes = _axes(7.4, 0.8 + 0.42 * len(shown))
    for place, row in enumerate(reversed(shown)):
        for estimate, shift, marker, label in (
            (row.win_rate, 0.1, "o", "win rate"),
            (row.length_controlled, -0.1, "D", "length-controlled"),
        ):
            if estimate is None:
                continue
            error = [[max(0.0, estimate.mean - estimate.ci_low)], [max(0.0, estimate.ci_high - estimate.mean)]]
            axes.errorbar(
                estimate.mean, place + shift, xerr=error, fmt=marker, color=colour_of(rows, row), markersize=5,
                mfc="white" if marker == "D" else None, label=label if place == 0 else None,
            )  # fmt: skip
    axes.axvline(0.5, color=_BASE, linestyle="--", linewidth=1.2)
    axes.set_yticks(range(len(shown)), [row.line.label for row in reversed(shown)])
    axes.set_xlabel(f"share of responses that {judge} prefers to those of {reference}, ties half")
    axes.legend(frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)
    return Figure(
        f"Win rate against {reference}",
        data_uri(figure),
        "Right of the dashed line a method wins more than it loses. Where the open mark lies left of the full one, part of the win was length.",
    )


def distributions(rows: Sequence[Row], judge: str) -> Figure | None:
    """The cumulative distribution of the main judge over responses: all lines in one picture."""
    figure, axes = _axes(7.4, 4.0)
    drawn = 0
    for row in rows:
        values = sorted(_values(row))
        if len(set(values)) < 2:
            continue
        share = [(number + 1) / len(values) for number in range(len(values))]
        axes.step(
            values,
            share,
            where="post",
            color=colour_of(rows, row),
            linestyle=style_of(rows, row),
            label=row.line.label,
            linewidth=1.6,
        )
        drawn += 1
    if drawn < 2:
        return None
    axes.set_xlabel(judge)
    axes.set_ylabel("share of responses at or below")
    _legend_beside(axes)
    return Figure(
        "How the judge's values are distributed",
        data_uri(figure),
        "A better method's curve lies lower and further right. A step at the left that does not shrink are failures that it leaves.",
    )


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
        at, values = [float(row.line.setting[name]) for row in same], [_mean(row) for row in same]
        figure, axes = _axes(7.4, 3.4)
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
        own, behind = _values(row), [] if sft is None else _values(sft)
        bins = bins if bins is not None else _bins([value for each in same for value in _values(each)] + behind)
        for values, colour, label in ((behind, _BASE, "sft"), (own, COLOURS[0], row.line.method)):
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


def _values(row: Row) -> list[float]:
    """The main judge's values of a line's responses."""
    return [
        value
        for outcome in row.outcomes
        for sample in responses_of(outcome)
        if (value := sample["rewards"].get(row.judge)) is not None
    ]


def learning(rows: Sequence[Row]) -> Figure | None:
    """The training reward over training, first seed, of every method that logs one."""
    figure, axes = _axes(7.4, 3.8)
    drawn = 0
    for row in rows:
        log = read_lines(row.outcomes[0].training / RUN_FOLDER / "metrics.jsonl")
        points = [(line["step"], line["reward"]) for line in log if _is_number(line.get("reward")) and "step" in line]
        if len(points) < 2:
            continue
        last = max(step for step, _ in points)
        axes.plot(
            [step / last for step, _ in points], [reward for _, reward in points], color=colour_of(rows, row),
            linestyle=style_of(rows, row), label=row.line.label, linewidth=1.5,
        )  # fmt: skip
        drawn += 1
    if not drawn:
        return None
    axes.set_xlabel("share of the training")
    axes.set_ylabel("training reward")
    _legend_beside(axes)
    return Figure(
        "Learning curves",
        data_uri(figure),
        "The reward of the responses that a method trains on, as it goes, first seed. It should rise; a judge that does not follow it is the sign of a gamed reward.",
    )


def on_test(rows: Sequence[Row]) -> Figure | None:
    """The training reward on the test's prompts over the training prompts seen, first seed, of lines with `eval_steps`."""
    figure, axes = _axes(7.4, 3.8)
    drawn = 0
    for row in rows:
        run = row.outcomes[0].training / RUN_FOLDER
        looks = [line for line in read_lines(run / "metrics.jsonl") if _is_number(line.get("eval_reward"))]
        if len(looks) < 2:
            continue
        axes.plot(
            [line["step"] * _prompts_a_step(run) for line in looks], [line["eval_reward"] for line in looks], color=colour_of(rows, row),
            linestyle=style_of(rows, row), label=row.line.label, linewidth=1.5, marker="o", markersize=3,
        )  # fmt: skip
        drawn += 1
    if not drawn:
        return None
    axes.set_xlabel("training prompts seen")
    axes.set_ylabel("training reward on the test's prompts")
    _legend_beside(axes)
    return Figure(
        "Test score over the training prompts",
        data_uri(figure),
        "The reward on the test's prompts as training goes, first seed, the same noise at every look; nothing was chosen by it.",
    )


def _prompts_a_step(run: Path) -> float:
    """Training prompts for each of a proxy's optimiser steps: those of a rollout over its steps."""
    config = yaml.safe_load((run / CONFIG_FILE).read_text(encoding="utf-8"))
    prompts = config["per_device_train_batch_size"] / config["num_generations"]
    return float(prompts / (config["num_iterations"] * config["num_mini_batches"]))


def _lowered(title: str) -> str:
    return title[0].lower() + title[1:]


def _legend_beside(axes: Any) -> None:
    axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _point_of(rows: Sequence[Row], row: Row, x: float) -> Point:
    return row.line.label, x, _mean(row), colour_of(rows, row), marker_of(rows, row)


def _draw(axes: Any, points: Sequence[Point]) -> None:
    """The points with their intervals; a few are named where they lie, many beside the axes, where no name covers another."""
    few = len(points) <= _NAMED_IN_PLACE
    for label, x, value, colour, marker in points:
        error = [[max(0.0, value.mean - value.ci_low)], [max(0.0, value.ci_high - value.mean)]]
        axes.errorbar(
            x, value.mean, yerr=error, fmt=marker, color=colour, markersize=6, capsize=2, zorder=2, label=label
        )
        if few:
            axes.annotate(label, (x, value.mean), textcoords="offset points", xytext=(6, 5), fontsize=8)
    if not few:
        _legend_beside(axes)


def _axes(width: float, height: float) -> tuple[Any, Any]:
    figure = canvas(width, height)
    axes = figure.add_subplot()
    tidy(axes, "both")
    return figure, axes
