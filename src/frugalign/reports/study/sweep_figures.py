"""Figures over a swept number: the main judge, its distribution at each value, and the learning curves."""

from __future__ import annotations

from collections.abc import Sequence

from frugalign.methods import registry
from frugalign.reports.figures import canvas, data_uri, tidy
from frugalign.reports.study.curve_figures import is_number, learning, on_test
from frugalign.reports.study.style import BASE, COLOURS, Figure, axes_of, main_of, values_of
from frugalign.study.table import Row


def sweeps(rows: Sequence[Row]) -> list[tuple[str, list[Row]]]:
    """(option name, lines that differ only in it, in its order) for every sweep of a number without `choose`."""
    found: dict[tuple[str, str, str], list[Row]] = {}
    for row in rows:
        for name, value in row.line.setting.items():
            if is_number(value):
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
    imitation = next((row for row in rows if registry.get(row.line.method).role == "imitation"), None)
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
        caption = f"The test's {judge} over {name}. All other options are equal."
        found.append(Figure(f"{method}: {judge} over {name}", data_uri(figure), caption))
        found.append(_panels(same, name, judge, imitation))
        for curves in (learning(same), on_test(same)):
            if curves is not None:
                found.append(Figure(f"{method}: {_lowered(curves.title)} at each {name}", curves.uri, curves.caption))
    return found


def _panels(same: Sequence[Row], name: str, judge: str, imitation: Row | None) -> Figure:
    """A histogram for each value of a setting, with SFT's in grey behind each."""
    figure = canvas(min(4, len(same)) * 2.6, 2.6 * -(-len(same) // 4))
    bins, first, grey = None, None, "" if imitation is None else imitation.line.label
    for place, row in enumerate(same):
        axes = figure.add_subplot(-(-len(same) // 4), min(4, len(same)), place + 1, sharey=first)
        first = first or axes
        tidy(axes, "both")
        own, behind = values_of(row), [] if imitation is None else values_of(imitation)
        bins = bins if bins is not None else _bins([value for each in same for value in values_of(each)] + behind)
        for values, colour, label in ((behind, BASE, grey), (own, COLOURS[0], row.line.method)):
            if values:
                axes.hist(
                    values, bins=bins, weights=[1 / len(values)] * len(values), alpha=0.55, color=colour, label=label
                )
        axes.set_title(f"{name} {row.line.setting[name]:g}", fontsize=9)
        axes.set_xlabel(judge)
        if place == 0:
            axes.legend(frameon=False, fontsize=7)
    caption = f"The distribution of the test's {judge} at each {name}" + (f", with {grey} in grey." if grey else ".")
    return Figure(f"{same[0].line.method}: distributions over {name}", data_uri(figure), caption)


def _bins(values: Sequence[float]) -> list[float]:
    low, high = min(values), max(values)
    return [low + (high - low or 1.0) * place / 24 for place in range(25)]


def _lowered(title: str) -> str:
    return title[0].lower() + title[1:]
