"""The figures of reports. matplotlib draws them, and they are returned as data URIs so that a page needs no other file."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import Any

from frugalign.reports.render import needs

_BASE, _POLICY, _THIRD, _FOURTH = "#8a8f98", "#0b6e4f", "#c2571a", "#5b4b8a"


def curve(series: Sequence[tuple[str, Sequence[float], Sequence[float]]], ylabel: str, xlabel: str = "step") -> str:
    """Lines over training steps: (label, steps, values) each."""
    figure, axes = _axes()
    for (label, steps, values), colour in zip(series, (_POLICY, _THIRD, _BASE, _FOURTH), strict=False):
        axes.plot(steps, values, label=label, color=colour, linewidth=1.8, marker="o" if len(steps) < 3 else None)
    return _labelled(figure, axes, xlabel, ylabel, legend=len(series) > 1)


def distributions(
    before: Sequence[float],
    after: Sequence[float],
    xlabel: str,
    labels: tuple[str, str] = ("base", "policy"),
    of: str = "completions",
    span: tuple[float, float] | None = None,
) -> str:
    """Histograms of two sets of rewards on common bins, from the lowest to the highest value or over `span`."""
    import numpy as np

    figure, axes = _axes()
    low, high = span or (min(*before, *after), max(*before, *after))
    bins = np.linspace(low, high if high > low else low + 1.0, 25)
    for values, label, colour in ((before, labels[0], _BASE), (after, labels[1], _POLICY)):
        weights = np.full(len(values), 1 / len(values))
        axes.hist(values, bins=bins, weights=weights, alpha=0.55, label=label, color=colour)
    axes.set_xlabel(xlabel)
    axes.set_ylabel(f"share of {of}")
    axes.legend(frameon=False)
    return data_uri(figure)


def bars(values: Sequence[tuple[str, float]], xlabel: str, ylabel: str, line: float | None = None) -> str:
    """A bar for each (label, value). `line`: height of a dashed horizontal line."""
    figure, axes = _axes()
    axes.bar([label for label, _ in values], [value for _, value in values], color=_POLICY, width=0.7)
    if line is not None:
        axes.axhline(line, color=_THIRD, linestyle="--", linewidth=1.4)
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    return data_uri(figure)


def shares(series: Sequence[tuple[str, Sequence[float]]], labels: Sequence[str], xlabel: str, ylabel: str) -> str:
    """Grouped bars: for each label, the bars of all (name, values)."""
    import numpy as np

    figure, axes = _axes()
    width = 0.8 / len(series)
    for place, ((name, values), colour) in enumerate(zip(series, (_BASE, _POLICY, _THIRD), strict=False)):
        axes.bar(
            np.arange(len(labels)) + (place - (len(series) - 1) / 2) * width, values, width, label=name, color=colour
        )
    axes.set_xticks(range(len(labels)), labels)
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    axes.legend(frameon=False)
    return data_uri(figure)


def stacked(series: Sequence[tuple[str, Sequence[float]]], labels: Sequence[str], xlabel: str, ylabel: str) -> str:
    """Stacked bars: for each label, one segment of every (name, values)."""
    figure, axes = _axes()
    below = [0.0] * len(labels)
    for (name, values), colour in zip(series, (_POLICY, _THIRD, _BASE, _FOURTH), strict=False):
        axes.bar(labels, values, width=0.7, bottom=below, label=name, color=colour)
        below = [low + value for low, value in zip(below, values, strict=True)]
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    axes.legend(frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=4)
    return data_uri(figure)


def with_intervals(
    series: Sequence[tuple[str, Sequence[int], Sequence[tuple[float, float, float]]]],
    ylabel: str,
    xlabel: str,
    *,
    level: float | None = None,
    bottom: float | None = None,
) -> str:
    """Curves over whole numbers with intervals: (label, numbers, (value, low, high)) each.

    `level`: height of a dashed line; `bottom`: lower limit of the y axis.
    """
    from matplotlib.ticker import MaxNLocator

    figure, axes = _axes()
    if level is not None:
        axes.axhline(level, color=_BASE, linestyle="--", linewidth=1.2)
    for (label, numbers, values), colour in zip(series, (_POLICY, _THIRD, _BASE, _FOURTH), strict=False):
        middle, low, high = zip(*values, strict=True)
        axes.plot(numbers, middle, label=label, color=colour, linewidth=1.8, marker="o", markersize=4)
        axes.fill_between(numbers, low, high, color=colour, alpha=0.15, linewidth=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    if bottom is not None:
        axes.set_ylim(bottom=bottom)
    return _labelled(figure, axes, xlabel, ylabel, legend=len(series) > 1)


def segmented_curves(
    series: Sequence[tuple[str, Sequence[tuple[Sequence[float], Sequence[float]]]]],
    borders: Sequence[float],
    ylabel: str,
    xlabel: str = "step",
) -> str:
    """Curves in segments, (label, [(steps, values)]) each. Each of the `borders`, where a new segment begins, is dotted."""
    figure, axes = _axes()
    for border in borders:
        axes.axvline(border + 0.5, color=_BASE, linestyle=":", linewidth=1.0)
    for (label, pieces), colour in zip(series, (_POLICY, _THIRD), strict=False):
        for number, (steps, values) in enumerate(pieces):
            name = label if number == 0 else None
            axes.plot(steps, values, label=name, color=colour, linewidth=1.6, marker="o", markersize=3)
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    axes.legend(frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)
    return data_uri(figure)


def distances(steps: Sequence[float], values: Sequence[float], floor: tuple[float, float], ylabel: str) -> str:
    """Distances from a start over steps. `floor`: (mean, upper limit) of the distance between two sample sets of the start."""
    figure, axes = _axes()
    axes.axhspan(0, floor[1], color=_BASE, alpha=0.2, label="two sample sets of the start (97.5 %)")
    axes.axhline(floor[0], color=_BASE, linewidth=1.2, linestyle="--")
    axes.plot(steps, values, color=_POLICY, linewidth=1.8, marker="o", markersize=4, label="policy from start")
    axes.set_ylim(bottom=0)
    return _labelled(figure, axes, "step", ylabel, legend=True)


def reliability(series: Sequence[tuple[str, Sequence[float], Sequence[float]]]) -> str:
    """Accuracy against confidence, (label, confidence, accuracy) each, beside the diagonal of perfect calibration."""
    figure, axes = _axes()
    axes.plot([0.5, 1.0], [0.5, 1.0], color="#b9bec5", linewidth=1.2, linestyle="--")
    for (label, confidence, right), colour in zip(series, (_BASE, _POLICY), strict=False):
        axes.plot(confidence, right, marker="o", markersize=4, label=label, color=colour, linewidth=1.6)
    axes.set_xlabel("confidence")
    axes.set_ylabel("accuracy")
    axes.legend(frameon=False)
    return data_uri(figure)


def _labelled(figure: Any, axes: Any, xlabel: str, ylabel: str, *, legend: bool) -> str:
    """The figure as a data URI, with its axes named and, if `legend`, a legend."""
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    if legend:
        axes.legend(frameon=False)
    return data_uri(figure)


def _axes() -> tuple[Any, Any]:
    figure = canvas(5.0, 3.1)
    axes = figure.add_subplot()
    tidy(axes)
    return figure, axes


def canvas(width: float, height: float) -> Any:
    """An empty matplotlib figure that needs no display. `width` and `height` in inches."""
    with needs("matplotlib"):
        from matplotlib.backends.backend_svg import FigureCanvasSVG
        from matplotlib.figure import Figure
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasSVG(figure)
    return figure


def tidy(axes: Any, grid: str = "y") -> None:
    """The common style: no box, and a light grid along one axis or `both`."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis=grid, color="#e3e5e8", linewidth=0.8)
    axes.set_axisbelow(True)


def data_uri(figure: Any) -> str:
    """A matplotlib figure as a data URI of its SVG."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    return "data:image/svg+xml;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
