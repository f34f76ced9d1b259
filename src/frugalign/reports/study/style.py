"""The style of a study's figures: axes, a colour, dash and marker for each line, intervals, the legend."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from frugalign.metrics import Estimate
from frugalign.reports.figures import canvas, tidy
from frugalign.study import plan
from frugalign.study.responses import responses_of
from frugalign.study.table import Row

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
BASE = "#8a8f98"
"""The colour of the base, and of whatever else is drawn for comparison."""


@dataclass(frozen=True)
class Figure:
    """A drawing as a data URI, and its caption. A figure that is not `wide` is shown smaller."""

    title: str
    uri: str
    caption: str
    wide: bool = True


def is_base(row: Row) -> bool:
    """Whether this is the base's line."""
    return plan.is_base(row.line.method, row.line.setting)


def colour_of(rows: Sequence[Row], row: Row) -> str:
    """A line's colour: the base is grey."""
    return BASE if is_base(row) else mark_of(_number_of(rows, row))[0]


def style_of(rows: Sequence[Row], row: Row) -> str:
    """A line's dash pattern, which changes each time the colours repeat."""
    return "-" if is_base(row) else ("-", "--", ":", "-.")[_number_of(rows, row) // len(COLOURS) % 4]


def marker_of(rows: Sequence[Row], row: Row) -> str:
    """The marker of a line's points."""
    return "o" if is_base(row) else mark_of(_number_of(rows, row))[1]


def mark_of(number: int) -> tuple[str, str]:
    """Colour and marker of line `number`, from 0. The marker changes each time the colours repeat."""
    return COLOURS[number % len(COLOURS)], "osD^"[number // len(COLOURS) % 4]


def _number_of(rows: Sequence[Row], row: Row) -> int:
    return [each.line.label for each in rows if not is_base(each)].index(row.line.label)


def legend_beside(axes: Any) -> None:
    """Put the legend beside the axes, where it covers nothing."""
    axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))


def bars_of(value: Estimate) -> list[list[float]]:
    """An interval as matplotlib's error bars."""
    return [[max(0.0, value.mean - value.ci_low)], [max(0.0, value.ci_high - value.mean)]]


def axes_of(width: float, height: float) -> tuple[Any, Any]:
    """A figure with one pair of axes. `width` and `height` in inches."""
    figure = canvas(width, height)
    axes = figure.add_subplot()
    tidy(axes, "both")
    return figure, axes


def main_of(row: Row) -> Estimate:
    """The main judge's mean, of a row that has one."""
    assert row.main is not None
    return row.main.value


def values_of(row: Row) -> list[float]:
    """The main judge's values of a line's responses."""
    return [
        value
        for outcome in row.outcomes
        for sample in responses_of(outcome)
        if (value := sample["rewards"].get(row.judge)) is not None
    ]
