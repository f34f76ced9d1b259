"""Figures 1 to 5 of the Proxy-RLHF paper (arXiv 2403.04283), drawn for a small model as pictures in docs/img.

    FRUGALIGN_TRIALS=folder python -m experiments.proxy_paper_figures [--study FILE] [--jobs 1] [--output docs/img] [--smoke]

Runs `studies/proxy-paper.yaml`, which takes about a quarter of an hour on one core, and draws it. Finished cells are skipped. All proxies have the marginal objective. Figure 2b shows the win rates in
results/stories-greedy.json, whose study trains longer. --study draws another study with
the same lines: stories.yaml, or proxy-paper-sandbox.yaml, which needs no trials folder.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from experiments.smoke import STUDIES, WORK, finished_rows
from experiments.summary import RESULTS
from matplotlib.figure import Figure

from frugalign.metrics import Estimate
from frugalign.reports.figures import canvas, tidy
from frugalign.reports.study.style import main_of, values_of
from frugalign.runs.layout import read_log, read_settings
from frugalign.study.layout import read_trace, training_run
from frugalign.study.responses import responses_of
from frugalign.study.table import Row

GREY, GREEN, RED = "#8a8f98", "#0b6e4f", "#a8324a"
DEFAULTS = {"p_t": 0.01, "temperature": 1.0}
PROMPTS = 2_000
"""Training prompts of one epoch."""


# -- the runs -----------------------------------------------------------------------------------------------------------


def lines_over(rows: Sequence[Row], name: str) -> list[tuple[float, Row]]:
    """(value, row) of the proxies that differ only in the option `name`, in its order."""
    other = next(each for each in DEFAULTS if each != name)
    found = [
        (float(row.line.setting.get(name, DEFAULTS[name])), row)
        for row in rows
        if row.line.method == "proxy"
        and row.line.setting.get(other, DEFAULTS[other]) == DEFAULTS[other]
        and row.line.setting.get("candidate_features") is None
    ]
    return sorted(found, key=lambda pair: pair[0])


def row_named(rows: Sequence[Row], label: str) -> Row:
    """The row with this label."""
    return next(row for row in rows if row.line.label == label)


def test_curve(row: Row) -> tuple[list[float], list[float]]:
    """Training prompts seen, and the mean score on the test prompts, over the first seed's training."""
    run = training_run(row.outcomes[0].training)
    config = read_settings(run)
    prompts = config["per_device_train_batch_size"] / config["num_generations"]
    each = prompts / (config["num_iterations"] * config["num_mini_batches"])
    evaluated = [line for line in read_log(run) if "eval_reward" in line]
    return [line["step"] * each for line in evaluated], [line["eval_reward"] for line in evaluated]


# -- the pictures -------------------------------------------------------------------------------------------------------


def panel(figure: Figure, rows: int, columns: int, place: int, title: str = "", sharey: Any = None) -> Any:
    """One panel of a figure. `sharey`: a panel with the same vertical axis."""
    axes = figure.add_subplot(rows, columns, place, sharey=sharey)
    tidy(axes)
    axes.set_title(title, fontsize=10)
    return axes


def completion(rows: Sequence[Row]) -> Figure:
    """Figure 1: a completion token by token. The tokens rejected before each are struck through."""
    cell = row_named(rows, "proxy").outcomes[0]
    samples, size = responses_of(cell), int((cell.result or {})["request"]["eval_samples"])
    traces = {place: read_trace(cell.folder, place) for place in range(len(samples) // size)}
    known = [(place, pieces) for place, pieces in traces.items() if pieces]
    place, pieces = max(known, key=lambda item: sum(len(piece["rejected"]) for piece in item[1]))
    prompt = str(samples[place * size]["prompt"])
    words = [(word, "black", False, 1.0) for word in prompt.split(" ")]
    for piece in pieces:
        rejected = list(dict.fromkeys(piece["rejected"]))[:3]
        words += [(str(word), RED, True, 1.0) for word in rejected]
        text = str(piece["text"]).replace("\n", " ")
        begins = text.startswith(" ") or not text.strip()  # a word, and not only a part of one
        words.append((text.strip() or "␣", GREEN, False, 1.0 if begins or rejected else 0.0))
    columns, lines, at = 112, [[]], 0.0  # type: ignore[var-annotated]
    for text, colour, struck, gap in words:
        if at + gap + len(text) > columns:
            lines.append([])
            at = 0.0
        gap = gap if lines[-1] else 0.0
        lines[-1].append((at + gap, text, colour, struck))
        at += gap + len(text)
    figure = canvas(9.6, 0.45 + 0.28 * len(lines))
    axes = figure.add_subplot()
    axes.set_axis_off()
    axes.set_xlim(0, columns + 8)
    axes.set_ylim(len(lines) - 0.5, -0.8)
    for number, line in enumerate(lines):
        for start, text, colour, struck in line:
            axes.text(
                start, number, text, color=colour, family="monospace", fontsize=9.5, va="center", parse_math=False
            )
            if struck:
                axes.plot([start - 0.2, start + len(text) + 0.1], [number, number], color=colour, linewidth=0.9)
    axes.set_title(
        "Prompt (black), accepted tokens (green), proposals the proxy rejected (red)", fontsize=10, loc="left"
    )
    return figure


def bins_of(values: Sequence[float]) -> list[float]:
    """24 equal bins over all values, so that panels can share them. A bin begins at 0, where many rewards are."""
    width = (max(values) - min(values) or 1.0) / 23
    first = math.floor(min(values) / width)
    return [(first + place) * width for place in range(25)]


def histogram(axes: Any, bins: Sequence[float], sft: Sequence[float], own: Sequence[float]) -> None:
    """The distributions of SFT and of a proxy."""
    for values, colour, name in ((sft, GREY, "SFT"), (own, GREEN, "proxy")):
        axes.hist(values, bins=bins, weights=[1 / len(values)] * len(values), color=colour, alpha=0.6, label=name)


def rewards(rows: Sequence[Row]) -> Figure:
    """Figure 2a: the distribution of the test reward."""
    figure = canvas(5.4, 3.4)
    axes = panel(figure, 1, 1, 1, "Test reward of SFT and of the proxy")
    sft, own = values_of(row_named(rows, "sft")), values_of(row_named(rows, "proxy"))
    histogram(axes, bins_of([*sft, *own]), sft, own)
    axes.margins(y=0.25)  # room above the bars
    axes.legend(frameon=False, fontsize=8, loc="upper left", ncols=2)
    axes.set_xlabel("test reward")
    axes.set_ylabel("share of responses")
    return figure


def win_rates() -> Figure:
    """Figure 2b: the recorded win rates against SFT, decoded greedily except for best-of-n."""
    recorded = json.loads((RESULTS / "stories-greedy.json").read_text(encoding="utf-8"))["rows"]
    titles = {"proxy": "proxy", "dpo": "DPO", "rloo": "RLOO", "best-of-32": "best of 32"}
    rates = [recorded[label]["win rate"] for label in titles]
    spread = [[mean - low for mean, low, _ in rates], [high - mean for mean, _, high in rates]]
    figure = canvas(5.4, 3.4)
    axes = panel(figure, 1, 1, 1, "Win rate against SFT")
    axes.bar(list(titles.values()), [rate[0] for rate in rates], yerr=spread, capsize=4, color=GREEN, width=0.6)
    axes.axhline(0.5, color=GREY, linestyle="--", linewidth=1)
    axes.set_ylim(0, 1.05)
    axes.set_ylabel("share of prompts won")
    return figure


def means(rows: Sequence[Row]) -> Figure:
    """Figure 3: the mean test reward after one epoch against p_t and temperature."""
    figure, axes = canvas(8.6, 3.4), None
    sft: Estimate = main_of(row_named(rows, "sft"))
    for place, name in enumerate(DEFAULTS, start=1):
        axes = panel(figure, 1, 2, place, f"({'ab'[place - 1]}) against {name}", sharey=axes)
        points = [(value, main_of(row)) for value, row in lines_over(rows, name)]
        at, middle = [value for value, _ in points], [each.mean for _, each in points]
        spread = [[each.mean - each.ci_low for _, each in points], [each.ci_high - each.mean for _, each in points]]
        axes.errorbar(at, middle, yerr=spread, color=GREEN, marker="o", capsize=4, label="proxy")
        axes.axhline(sft.mean, color=GREY, linestyle="--", label="SFT")
        if name == "p_t":
            axes.set_xscale("log")
            axes.set_ylabel("mean test reward")
            axes.legend(frameon=False, fontsize=8, loc="center left")
        else:
            axes.set_xticks(at)
        axes.set_xlabel(name)
    return figure


def at_each(name: str) -> Callable[[Sequence[Row]], Figure]:
    """Figures 4 (temperature) and 5 (p_t): distributions after one epoch, and below them the test reward over the training prompts."""

    def draw(rows: Sequence[Row]) -> Figure:
        sft, lines = values_of(row_named(rows, "sft")), lines_over(rows, name)
        figure = canvas(2.7 * len(lines), 5.2)
        own = [values_of(row) for _, row in lines]
        bins = bins_of([*sft, *(value for values in own for value in values)])
        above = below = None
        for place, ((value, row), values) in enumerate(zip(lines, own, strict=True)):
            above = panel(figure, 2, len(lines), place + 1, f"({'abcd'[place]}) {name} {value:g}", above)
            histogram(above, bins, sft, values)
            above.set_xlabel("test reward", fontsize=9)
            below = panel(figure, 2, len(lines), len(lines) + place + 1, f"({'efgh'[place]}) {name} {value:g}", below)
            below.plot(*test_curve(row), color=GREEN, marker="o", markersize=3)
            below.set_xlim(0, 1.03 * PROMPTS)
            below.set_xticks([0, PROMPTS // 2, PROMPTS])
            below.set_xlabel("training prompts seen", fontsize=9)
            if not place:
                above.set_ylabel("share of responses")
                above.legend(frameon=False, fontsize=8, loc="upper left")
                below.set_ylabel("mean test reward")
        return figure

    return draw


SAMPLED: dict[str, Callable[[Sequence[Row]], Figure]] = {
    "1-completion": completion,
    "2a-rewards": rewards,
    "3-means": means,
    "4-temperature": at_each("temperature"),
    "5-p_t": at_each("p_t"),
}


def main() -> None:
    """Run the missing cells and draw every figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--study", type=Path, default=STUDIES / "proxy-paper.yaml", help="Study file.")
    parser.add_argument("--jobs", type=int, default=1, help="Cells to run at once.")
    parser.add_argument("--output", type=Path, default=Path("docs/img"))
    parser.add_argument("--smoke", action="store_true", help="The smallest setting, drawn in runs/smoke.")
    options = parser.parse_args()
    if options.smoke:
        options.output = WORK / "img"
    options.output.mkdir(parents=True, exist_ok=True)
    _, rows = finished_rows(options.study, is_smoke=options.smoke, jobs=options.jobs)
    drawn = {name: draw(rows) for name, draw in SAMPLED.items()} | {"2b-win-rates": win_rates()}
    for name, figure in sorted(drawn.items()):
        path = options.output / f"proxy-paper-{name}.png"
        figure.savefig(path, dpi=130)
        print(path)


if __name__ == "__main__":
    main()
