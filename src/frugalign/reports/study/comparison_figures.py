"""Figures that compare a study's lines: quality against cost and KL, win rates, distributions. Each caption says what to look for."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

from frugalign.metrics import Estimate
from frugalign.reports.figures import data_uri
from frugalign.reports.study.curve_figures import learning, on_test
from frugalign.reports.study.style import (
    BASE,
    Figure,
    axes_of,
    bars_of,
    colour_of,
    is_base,
    legend_beside,
    main_of,
    marker_of,
    style_of,
    values_of,
)  # fmt: skip
from frugalign.reports.study.sweep_figures import settings
from frugalign.study.table import Row


def figures_of(every: Sequence[Row], judge: str, reference: str) -> list[Figure]:
    """Every figure that these rows have the numbers for. `reference`: what they are compared with, in words."""
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


def pareto(points: Sequence[tuple[float, float]]) -> list[int]:
    """The indices of the Pareto front of (cost, quality) points: no other point is better at no more cost, or as good at less."""
    return [
        number
        for number, (cost, quality) in enumerate(points)
        if not any(
            (other <= cost and better > quality) or (other < cost and better >= quality) for other, better in points
        )
    ]


Point = tuple[str, float, Estimate, str, str]
"""A line of the study as a point: label, x, quality, colour and marker."""


def against_cost(rows: Sequence[Row], judge: str) -> Figure | None:
    """The main judge against the tokens fed to language models in training."""
    trained = [row for row in rows if row.costs["lm_forward_tokens"] > 0]
    if len(trained) < 2:
        return None
    points = [_point_of(rows, row, row.costs["lm_forward_tokens"]) for row in trained]
    base = next((main_of(row).mean for row in rows if is_base(row)), None)
    return Figure(
        "Quality against cost",
        data_uri(cost_figure(points, base, judge)),
        "Up and to the left is better. The grey line is the Pareto front: no method beats these at their cost. The dashed line is the base. "
        "Bars are 95 % intervals.",
    )


def cost_figure(points: Sequence[Point], base: float | None, judge: str) -> Any:
    """A matplotlib figure of quality over tokens fed, with the Pareto front and the base's quality."""
    figure, axes = axes_of(7.4, 4.4)
    front = sorted(pareto([(point[1], point[2].mean) for point in points]), key=lambda number: points[number][1])
    axes.plot(
        [points[number][1] for number in front], [points[number][2].mean for number in front],
        color="#b9bec5", linewidth=1.2, zorder=1,
    )  # fmt: skip
    _log_axis(axes)
    _draw(axes, points)
    if base is not None:
        axes.axhline(base, color=BASE, linestyle="--", linewidth=1.2)
    axes.set_xlabel("tokens fed to the language model in training (log scale)")
    axes.set_ylabel(judge)
    _name(axes, points)
    return figure


def against_kl(rows: Sequence[Row], judge: str) -> Figure | None:
    """The main judge against the KL to the base."""
    placed = [(row, row.others["kl_per_sequence"]) for row in rows]
    known = [(row, kl) for row, kl in placed if kl is not None]
    if len(known) < 2:
        return None
    figure, axes = axes_of(7.4, 4.4)
    points = [_point_of(rows, row, max(kl.mean, 0.0)) for row, kl in known]
    _log_axis(axes, linear=0.1)
    _draw(axes, points)
    axes.set_xlim(left=-0.01)  # shows the whole marker of the base
    axes.set_xlabel("KL to the base, nats per response")
    axes.set_ylabel(judge)
    _name(axes, points)
    return Figure(
        "Quality against distance from the base",
        data_uri(figure),
        "How much a method gains for its distance from the base. A large KL without a gain is a sign of reward hacking. The KL of best-of-n is its "
        "known upper bound.",
    )


def wins(rows: Sequence[Row], judge: str, reference: str) -> Figure | None:
    """Win rates against the reference, plain and length-controlled."""
    shown = [row for row in rows if row.win_rate is not None]
    if not shown:
        return None
    figure, axes = axes_of(7.4, 0.8 + 0.42 * len(shown))
    for place, row in enumerate(reversed(shown)):
        for estimate, shift, marker, label in (
            (row.win_rate, 0.1, "o", "win rate"),
            (row.length_controlled, -0.1, "D", "at equal length"),
        ):
            if estimate is None:
                continue
            axes.errorbar(
                estimate.mean, place + shift, xerr=bars_of(estimate), fmt=marker, color=colour_of(rows, row), markersize=5,
                mfc="white" if marker == "D" else None, label=label if place == 0 else None,
            )  # fmt: skip
    axes.axvline(0.5, color=BASE, linestyle="--", linewidth=1.2)
    axes.set_yticks(range(len(shown)), [row.line.label for row in reversed(shown)])
    axes.set_xlabel(f"share of responses that {judge} prefers to those of {reference} (ties count half)")
    axes.legend(frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)
    return Figure(
        f"Win rate against {reference}",
        data_uri(figure),
        "Right of the dashed line a method wins more often than it loses. An open marker left of the filled one means that length explains part of "
        "the wins. To its right, length cost wins.",
    )


def distributions(rows: Sequence[Row], judge: str) -> Figure | None:
    """The cumulative distribution of the main judge over responses, all lines in one figure."""
    figure, axes = axes_of(7.4, 4.0)
    drawn = 0
    for row in rows:
        values = sorted(values_of(row))
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
    legend_beside(axes)
    return Figure(
        "Distribution of the judge's values",
        data_uri(figure),
        "A better method's curve lies lower and further right. A step at the left is a share of failures that remain.",
    )


def _log_axis(axes: Any, linear: float | None = None) -> None:
    """A logarithmic x axis with ticks at 1, 2 and 5. An axis that begins at 0 is linear below `linear`."""
    from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter, SymmetricalLogLocator

    parts = (1, 2, 5)
    if linear is None:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=parts))
    else:
        axes.set_xscale("symlog", linthresh=linear)
        axes.xaxis.set_major_locator(SymmetricalLogLocator(base=10, linthresh=linear, subs=parts))
    axes.xaxis.set_major_formatter("{x:g}" if linear is not None else EngFormatter(sep=""))
    axes.xaxis.set_minor_formatter(NullFormatter())


def _point_of(rows: Sequence[Row], row: Row, x: float) -> Point:
    return row.line.label, x, main_of(row), colour_of(rows, row), marker_of(rows, row)


def _draw(axes: Any, points: Sequence[Point]) -> None:
    """The points with their intervals."""
    for label, x, value, colour, marker in points:
        axes.errorbar(
            x, value.mean, yerr=bars_of(value), fmt=marker, color=colour, markersize=6, capsize=2, zorder=2, label=label
        )


def _name(axes: Any, points: Sequence[Point]) -> None:
    """Label each point in place, or all in a legend if labels would overlap. Call it last: it needs the axes' limits."""
    names = [
        axes.annotate(label, (x, value.mean), textcoords="offset points", xytext=(6, 5), fontsize=8)
        for label, x, value, _, _ in points
    ]
    axes.figure.draw_without_rendering()
    boxes = [name.get_window_extent() for name in names]
    if any(one.overlaps(other) for one, other in itertools.combinations(boxes, 2)):
        for name in names:
            name.remove()
        legend_beside(axes)
