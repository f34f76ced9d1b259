"""Figures that a method's own training left, of a line's first seed: probe layers and calibration, shift, PSLE's rounds."""

from __future__ import annotations

from collections.abc import Sequence

from frugalign.artifacts import read_json, read_lines
from frugalign.evaluation.reward_report import layers_figure, reliability_figure
from frugalign.evaluation.round_figures import LEARNED_FROM, learned_from_figures
from frugalign.evaluation.rounds import read_rounds
from frugalign.evaluation.shifting import read_shift
from frugalign.study.comparing import Row
from frugalign.study.figures import Figure

_REWARD_REPORT, _METRICS, _SHIFT = "reward/reward_report.json", "run/metrics.jsonl", "run/shift.json"


def run_figures_of(rows: Sequence[Row]) -> list[Figure]:
    """Everything that the lines' first runs have the numbers for; each kind once, of the first line that has it."""
    found: list[Figure] = []
    for read in (probes, shift, rounds):
        found += next((figures for row in rows if (figures := read(row))), [])
    return found


def probes(row: Row) -> list[Figure]:
    """Accuracy by layer and the reliability of a reward that the cell fitted on hidden states."""
    report = read_json(row.outcomes[0].training / _REWARD_REPORT)
    if not report:
        return []
    named = (("probe layers", layers_figure(report)), ("calibration of the probes", reliability_figure(report)))
    return [Figure(f"{row.line.label}: {name}", drawn[1], drawn[0]) for name, drawn in named if drawn is not None]


def shift(row: Row) -> list[Figure]:
    """How rankings and samples moved, of a line with `shift_reward`."""
    found = read_shift(read_lines(row.outcomes[0].training / _METRICS), read_json(row.outcomes[0].training / _SHIFT))
    return [] if found is None else [Figure(f"{row.line.label}: shift", found.figure, found.verdict)]


def rounds(row: Row) -> list[Figure]:
    """What PSLE's rounds learned from: gain and threshold, branches, the use of the responses beside RAFT's."""
    read = read_rounds(row.outcomes[0].training / "run") if row.line.method == "psle" else None
    drawn = [] if read is None else learned_from_figures(read)
    return [Figure(f"{row.line.label}: {text}", uri, LEARNED_FROM) for text, uri in drawn]
