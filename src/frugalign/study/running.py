"""Run a study's cells, a process each: what is done is skipped, what fails is reported and does not stop the rest."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from frugalign.artifacts import write_json_atomic
from frugalign.study.cell import ASKS_FILE, FAILED_FILE, LOG_FILE, RESULT_FILE
from frugalign.study.methods import check_options
from frugalign.study.options import StudyOptions
from frugalign.study.plan import Cell, Line, cells_of, choosing_cells, is_wanted, lines_of, swept

CHOSEN_FILE, START_FILE = "chosen.json", "start.json"
_POLL = 0.2
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Outcome:
    """A cell with what came of it: its result, or why there is none."""

    cell: Cell
    folder: Path
    result: dict[str, Any] | None
    error: str | None


@dataclass(frozen=True)
class Finished:
    """A study as far as it is run: the lines of its table, all outcomes, and what choosing found."""

    options: StudyOptions
    lines: list[Line]
    outcomes: list[Outcome]
    chosen: dict[str, Any]

    def of(self, line: Line) -> list[Outcome]:
        """A line's cells, seed by seed."""
        return [outcome for outcome in self.outcomes if outcome.cell.line == line]

    @property
    def missing(self) -> list[Outcome]:
        """Cells without a result."""
        return [outcome for outcome in self.outcomes if outcome.result is None]


def run_study(options: StudyOptions) -> Finished:
    """Decide the sweeps where `choose` says so, then run every cell that is not done.

    Raises:
        FrugalignError: a study that cannot be run at all; a cell that fails is an outcome.
    """
    study = Path(options.output_dir)
    check_options(lines_of(options))
    if options.choose is not None:
        sweeps = [line for line in lines_of(options) if len(swept(line)) > 1 and _is_needed(line, options)]
        run_cells([cell for line in sweeps for cell in choosing_cells(line, options)], study, options.jobs)
    given = {each.label: line for line in lines_of(options) for each in (*swept(line), line)}
    cells = cells_of(read_study(options).lines, options)
    run_cells(
        [cell for cell in cells if is_wanted(cell.line, given[cell.line.label], cell.seed, options)],
        study,
        options.jobs,
    )
    return read_study(options)


def read_study(options: StudyOptions) -> Finished:
    """What there is of a study, without running anything; a sweep that is not decided yet has no line."""
    study = Path(options.output_dir)
    lines: list[Line] = []
    chosen: dict[str, Any] = {}
    for line in lines_of(options):
        choices = swept(line)
        if len(choices) == 1 or options.choose is None:
            lines += choices
            continue
        scored = [
            (each, outcome_of(cell, study)) for each, cell in zip(choices, choosing_cells(line, options), strict=True)
        ]
        known = {each.label: _main(found.result) for each, found in scored if found.result is not None}
        failed = [found.error for _, found in scored if found.error not in (None, NOT_RUN)]
        if len(known) + len(failed) < len(scored) or not known:
            chosen[line.label] = {"tried": known, "failed": failed, "setting": None}
            continue
        best = max((each for each, _ in scored if each.label in known), key=lambda each: known[each.label])
        chosen[line.label] = {"tried": known, "failed": failed, "setting": best.setting}
        lines.append(Line(line.label, line.method, best.setting))
    if chosen:
        write_json_atomic(study / CHOSEN_FILE, chosen)
    return Finished(options, lines, [outcome_of(cell, study) for cell in cells_of(lines, options)], chosen)


NOT_RUN = "not run yet"


def outcome_of(cell: Cell, study: Path) -> Outcome:
    """What a cell's folder holds."""
    folder = cell.folder(study)
    if (folder / RESULT_FILE).is_file():
        return Outcome(cell, folder, json.loads((folder / RESULT_FILE).read_text(encoding="utf-8")), None)
    if (folder / FAILED_FILE).is_file():
        return Outcome(cell, folder, None, str(json.loads((folder / FAILED_FILE).read_text(encoding="utf-8"))["error"]))
    return Outcome(cell, folder, None, NOT_RUN)


def run_cells(cells: Sequence[Cell], study: Path, jobs: int) -> None:
    """Run what has no result, `jobs` processes at a time; their output is in each cell's log.txt."""
    left = [cell for cell in cells if outcome_of(cell, study).result is None]
    if len(left) < len(cells):
        print(f"{len(cells) - len(left)} of {len(cells)} cells are done already.", flush=True)
    waiting, running, done = list(left), list[tuple[Cell, subprocess.Popen[bytes], float]](), 0
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                cell = waiting.pop(0)
                running.append((cell, _start(cell, study), time.perf_counter()))
            time.sleep(_POLL)
            for entry in [entry for entry in running if entry[1].poll() is not None]:
                running.remove(entry)
                done += 1
                _report(entry[0], study, entry[1].returncode, time.perf_counter() - entry[2], f"{done}/{len(left)}")
    finally:
        for _, process, _ in running:
            process.terminate()
        for _, process, _ in running:
            process.wait()


def _start(cell: Cell, study: Path) -> subprocess.Popen[bytes]:
    folder = cell.folder(study)
    write_json_atomic(folder / ASKS_FILE, cell.asks)
    (folder / FAILED_FILE).unlink(missing_ok=True)
    with (folder / LOG_FILE).open("wb") as log:
        command = [sys.executable, "-m", "frugalign.study.cell", str(folder), str(study / START_FILE)]
        quiet = {"HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "PYTHONUNBUFFERED": "1"}
        return subprocess.Popen(
            command, stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, env=quiet | os.environ
        )


def _report(cell: Cell, study: Path, status: int, seconds: float, place: str) -> None:
    found = outcome_of(cell, study)
    if found.result is not None:
        print(f"{place} {cell.name}: {_main(found.result):.4g} in {seconds:,.0f} s", flush=True)
        return
    if not (found.folder / FAILED_FILE).is_file():  # killed from outside, by the system for its memory perhaps
        write_json_atomic(found.folder / FAILED_FILE, {"error": f"its process ended with status {status}"})
    _log.warning("%s %s failed: %s; see %s.", place, cell.name, outcome_of(cell, study).error, found.folder / LOG_FILE)


def _main(result: dict[str, Any]) -> float:
    """The main judge's mean."""
    return float((result["metrics"]["reward"] or {"mean": float("nan")})["mean"])


def _is_needed(sweep: Line, options: StudyOptions) -> bool:
    """Whether any cell that is asked for waits for this sweep to be decided."""
    return any(is_wanted(sweep, sweep, seed, options) for seed in options.seeds)
