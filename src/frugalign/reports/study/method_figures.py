"""Figures of a line's training, first seed: probe layers and calibration, shift, PSLE's rounds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from frugalign.methods import registry
from frugalign.methods.psle.report_data import read_rounds
from frugalign.reports.psle_section import learned_from_figures
from frugalign.reports.rerank_section import shift_of
from frugalign.reports.reward_page import layers_figure, reliability_figure
from frugalign.reports.study.style import Figure
from frugalign.runs.layout import read_log, read_reward_report, read_shift
from frugalign.study.layout import fitted_reward, training_run
from frugalign.study.table import Row

_SEE = (
    ("tokens", "RAFT learns only from each prompt's best response. The other sampled tokens get no gradient."),
    ("(Σw)²", "The effective share of the responses by their weights: 1 means equal weights. RAFT uses the best of each prompt."),
    ("branch", "Couples whose gain is above the threshold are ranked. The others are imitated, weighted by their reward. "
               "The ranked share shrinks as the model learns the principles."),
    ("reward", "The mean gain of answers under the principles, and the threshold above which a couple is ranked."),
)  # fmt: skip
"""A word in a title of `learned_from_figures`, and the figure's caption."""


def run_figures_of(rows: Sequence[Row]) -> list[Figure]:
    """The figures that the lines' first runs have the numbers for. Each kind is drawn once, for the first line that has it."""
    found: list[Figure] = []
    for kind, read in {"probes": probes, "shift": shift, "rounds": rounds}.items():
        own = [row for row in rows if kind in registry.get(row.line.method).report]
        found += next((figures for row in own if (figures := read(row, row.outcomes[0].training))), [])
    return found


def probes(row: Row, training: Path) -> list[Figure]:
    """Accuracy by layer and calibration of the representation reward that the cell fitted."""
    report = read_reward_report(fitted_reward(training))
    if report is None:
        return []
    named = (("probe layers", layers_figure(report)), ("calibration of the probes", reliability_figure(report)))
    return [
        Figure(f"{row.line.label}: {name}", drawn[1], drawn[0], wide=False)
        for name, drawn in named
        if drawn is not None
    ]


def shift(row: Row, training: Path) -> list[Figure]:
    """How rankings and samples moved, for a line with `shift_reward`."""
    run = training_run(training)
    found = shift_of(read_log(run), read_shift(run))
    if found is None:
        return []
    return [Figure(f"{row.line.label}: {text}", uri, found.verdict, wide=False) for text, uri in found.figures]


def rounds(row: Row, training: Path) -> list[Figure]:
    """What PSLE's rounds learned from: gain and threshold, branches, and the use of the responses beside RAFT's."""
    read = read_rounds(training_run(training))
    drawn = [] if read is None else learned_from_figures(read)
    return [
        Figure(f"{row.line.label}: {text}", uri, next(said for part, said in _SEE if part in text), wide=False)
        for text, uri in drawn
    ]
