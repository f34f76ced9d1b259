"""Run a study's cells, each in its own process, here or on Ray. Finished cells are skipped; a failed one is reported and does not stop the rest."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from frugalign.base.files import write_json_atomic
from frugalign.base.json_files import read_json
from frugalign.base.progress import STEPS, Part, close_part, is_shown, open_part, set_done
from frugalign.base.quantities import in_short
from frugalign.base.wording import pluralize
from frugalign.methods import registry
from frugalign.runs.lock import in_use
from frugalign.runs.progress import Pace, say_size
from frugalign.study.checks import check_study
from frugalign.study.launching import Here, Launcher, OnRay, Running
from frugalign.study.layout import (
    CHOSEN_FILE,
    FAILED_FILE,
    LOG_FILE,
    REQUEST_FILE,
    START_FOLDER,
    TRAININGS_FOLDER,
    CellResult,
    read_failure,
    read_result,
    read_trained,
)
from frugalign.study.options import StudyOptions
from frugalign.study.plan import Cell, Line, cells_of, choosing_cells, is_base, is_wanted, lines_of, swept
from frugalign.study.task import prompt_splits

_POLL = 0.2
_TAIL = 400
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Outcome:
    """A cell with its result, or the reason why it has none. `training`: the folder of its training."""

    cell: Cell
    folder: Path
    training: Path
    result: CellResult | None
    error: str | None


@dataclass(frozen=True)
class StudyState:
    """A study as far as it has run.

    Attributes:
        lines: of the table.
        outcomes: of every test cell.
        chosen: what was chosen for each sweep, by label.
        unchosen: choosing cells without a result.
    """

    options: StudyOptions
    lines: list[Line]
    outcomes: list[Outcome]
    chosen: dict[str, Any]
    unchosen: list[Outcome]

    def of(self, line: Line) -> list[Outcome]:
        """A line's cells, seed by seed."""
        return [outcome for outcome in self.outcomes if outcome.cell.line == line]

    @property
    def missing(self) -> list[Outcome]:
        """Cells without a result, including the choosing cells of sweeps that have no setting yet."""
        given = _lines_by_label(self.options)
        choosing = [each for each in self.unchosen if self.chosen[given[each.cell.line.label].label]["setting"] is None]
        return [*choosing, *(outcome for outcome in self.outcomes if outcome.result is None)]

    @property
    def wanted_missing(self) -> list[Outcome]:
        """The missing cells that `only` selects."""
        given, to_choose_by = _lines_by_label(self.options), _to_choose_by(self.options)
        return [
            each
            for each in self.missing
            if (
                each.cell in to_choose_by
                if each.cell.kind == "choosing"
                else is_wanted(each.cell.line, given[each.cell.line.label], each.cell.seed, self.options)
            )
        ]


def run_study(options: StudyOptions) -> StudyState:
    """Choose the sweeps' settings if the study has `choose`, then run every missing cell.

    Raises:
        FrugalignError: a study that cannot run at all, or that another command is running. A failed cell is an outcome instead.
    """
    study = Path(options.output_dir)
    if read_study(options).missing:
        check_study(options, lines_of(options))
    with in_use(study, shared=trainings_of(options)):
        if options.choose is not None:
            run_cells(_to_choose_by(options), options)
            write_json_atomic(study / CHOSEN_FILE, read_study(options).chosen)
        given = _lines_by_label(options)
        cells = cells_of(read_study(options).lines, options)
        run_cells([cell for cell in cells if is_wanted(cell.line, given[cell.line.label], cell.seed, options)], options)
    return read_study(options)


def _lines_by_label(options: StudyOptions) -> dict[str, Line]:
    """The YAML's line for every label, including the labels of a sweep's settings."""
    return {each.label: line for line in lines_of(options) for each in (*swept(line), line)}


def sweeps_of(options: StudyOptions) -> list[Line]:
    """The lines whose setting must be chosen."""
    return [line for line in lines_of(options) if options.choose is not None and len(swept(line)) > 1]


def read_study(options: StudyOptions) -> StudyState:
    """A study as far as it has run. Nothing is run or written. A sweep without a chosen setting has no line.

    A choice is made once. `chosen.json` holds for a sweep as long as its choosing cells stay the same.
    """
    study = Path(options.output_dir)
    frozen = read_json(study / CHOSEN_FILE)
    lines: list[Line] = []
    chosen: dict[str, Any] = {}
    failed: list[Outcome] = []
    sweeps = sweeps_of(options)
    for line in lines_of(options):
        if line not in sweeps:
            lines += swept(line)
            continue
        chosen[line.label] = frozen[line.label] if _is_frozen(line, frozen, options) else _choice(line, options)
        if chosen[line.label]["setting"] is not None:
            lines.append(Line(line.label, line.method, chosen[line.label]["setting"]))
        failed += [each for each in _tried(line, options) if each.result is None]
    outcomes = [outcome_of(cell, options) for cell in cells_of(lines, options)]
    return StudyState(options, lines, outcomes, chosen, failed)


def _tried(sweep: Line, options: StudyOptions) -> list[Outcome]:
    return [outcome_of(cell, options) for cell in choosing_cells(sweep, options)]


def _cell_names(sweep: Line, options: StudyOptions) -> str:
    """The choosing cells' folder names, which change with anything that the choice depends on."""
    study = Path(options.output_dir)
    return " ".join(cell.folder(study).name for cell in choosing_cells(sweep, options))


def _is_frozen(sweep: Line, frozen: dict[str, Any], options: StudyOptions) -> bool:
    known = frozen.get(sweep.label, {})
    return known.get("setting") is not None and known.get("cells") == _cell_names(sweep, options)


def _choice(sweep: Line, options: StudyOptions) -> dict[str, Any]:
    """The setting with the highest main judge. None while one has not run, or if all have failed."""
    tried = _tried(sweep, options)
    known = {
        each.cell.line.label: value
        for each in tried
        if each.result is not None and (value := main_judge(each.result)) is not None
    }
    waiting = [each for each in tried if each.error == NOT_RUN]
    best = max(known, key=lambda label: known[label]) if known and not waiting else None
    return {
        "tried": known,
        "failed": {each.cell.line.label: each.error for each in tried if each.error not in (None, NOT_RUN)},
        "setting": next((each.cell.line.setting for each in tried if each.cell.line.label == best), None),
        "cells": _cell_names(sweep, options),
    }


NOT_RUN = "not run yet"


def outcome_of(cell: Cell, options: StudyOptions) -> Outcome:
    """A cell's result or failure, as its folder has it."""
    folder, training = cell.folder(Path(options.output_dir)), cell.training(trainings_of(options))
    result, failure = read_result(folder), read_failure(folder)
    if result is None and failure is not None:
        return Outcome(cell, folder, training, None, failure.rstrip("."))  # a part of other sentences
    return Outcome(cell, folder, training, result, NOT_RUN if result is None else None)


def trainings_of(options: StudyOptions) -> Path:
    """The folder of the study's trainings."""
    return Path(options.trainings_dir or Path(options.output_dir) / TRAININGS_FOLDER)


def run_cells(cells: Sequence[Cell], options: StudyOptions) -> None:
    """Run the cells without a result, `options.jobs` at a time, or on Ray as many as it has room for. Each cell's output is in its log.txt."""
    open_ones = [each for each in (outcome_of(cell, options) for cell in cells) if each.result is None]
    left = [each.cell for each in open_ones]
    if len(left) < len(cells):
        print(f"{len(cells) - len(left)} of {len(cells)} cells are finished already.", flush=True)
    to_train = [each for each in open_ones if registry.get(each.cell.line.method).is_trained]
    trained = sum(read_trained(each.training) is not None for each in to_train)
    if trained or (to_train and options.trainings_dir is not None):
        print(f"{trained} of {len(to_train)} trainings of the other cells are finished already.", flush=True)
    _say_size(left, options)
    waiting, running, done = list(left), list[tuple[Cell, Running, float]](), 0
    said: set[str] = set()
    launcher = (Here(options.jobs) if options.ray is None else OnRay(options)) if left else Here(1)
    pace, part = Pace("cell", launcher.at_once), Part("cells", len(left), STEPS)
    open_part(part)
    try:
        while waiting or running:
            while waiting and len(running) < launcher.at_once + launcher.may_wait:
                cell = waiting.pop(0)
                running.append((cell, _start(cell, options, launcher), time.perf_counter()))
            time.sleep(_POLL)
            for entry in [entry for entry in running if entry[1].poll() is not None]:
                running.remove(entry)
                done += 1
                _report(entry[0], options, entry[1].wait(), time.perf_counter() - entry[2], f"{done}/{len(left)}")
                _repeat_warnings(entry[0], options, said)
                pace.finished("The first cell", len(left) - done)
            if is_shown():
                lines = (_last_line(cell, options) for cell, _, _ in running)
                set_done(part, done, "; ".join(line for line in lines if line))
    finally:  # also when the runner is told to stop
        close_part(part)
        for _, process, _ in running:
            process.terminate()
        for _, process, _ in running:
            process.wait()


def _say_size(cells: Sequence[Cell], options: StudyOptions) -> None:
    """Say how many tokens the tests sample, and what the trainings may spend."""
    if not cells or not is_shown():
        return
    splits = prompt_splits(cells[0].request)
    sampled = 0
    for cell in cells:
        request = cell.request
        prompts = len(splits["validation" if cell.kind == "choosing" else "test"])
        prompts = min(prompts, request.get("eval_prompts") or prompts)
        method = registry.get(cell.line.method)
        draws = (
            1 if is_base(cell.line.method, cell.line.setting) else 1 + method.draws(cell.line.setting)
        )  # the base answers, too
        sampled += prompts * options.eval_samples * draws * options.max_new_tokens
    to_train = sum(registry.get(cell.line.method).is_trained for cell in cells)
    budget = ", ".join(f"{in_short(value)} {name.replace('_', ' ')}" for name, value in (options.budget or {}).items())
    limit = f"up to {budget} each" if budget else "their own size"
    trainings = f"; besides, {pluralize(to_train, 'training')} of {limit}" if to_train else ""
    say_size(sampled, 0, f"the tests of {pluralize(len(cells), 'cell')}{trainings}")


def _last_line(cell: Cell, options: StudyOptions) -> str | None:
    """The cell's name and the last line of its log. None while it waits for its turn."""
    log = cell.folder(Path(options.output_dir)) / LOG_FILE
    if not log.is_file():
        return None
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - _TAIL))
        lines = file.read().decode("utf-8", "replace").split("\n")
    said = next((line for line in reversed(lines) if line.strip()), "")
    return f"{cell.name}: {said.strip()}"


def _start(cell: Cell, options: StudyOptions, launcher: Launcher) -> Running:
    study = Path(options.output_dir)
    folder = cell.folder(study)
    write_json_atomic(folder / REQUEST_FILE, cell.request)
    (folder / FAILED_FILE).unlink(missing_ok=True)
    words = [str(study / START_FOLDER), str(trainings_of(options)), str(options.eval_batch_size)]
    return launcher.start(folder, [*words, str(launcher.at_once)])


def _report(cell: Cell, options: StudyOptions, status: int, seconds: float, place: str) -> None:
    found = outcome_of(cell, options)
    if found.result is not None:
        value = main_judge(found.result)
        print(
            f"{place} {cell.name}: {'no value' if value is None else format(value, '.4g')} in {seconds:,.0f} s",
            flush=True,
        )
        return
    if not (found.folder / FAILED_FILE).is_file():  # killed from outside, possibly for its memory
        write_json_atomic(found.folder / FAILED_FILE, {"error": f"its process ended with status {status}"})
    _log.warning(
        "%s %s failed: %s; see %s.", place, cell.name, outcome_of(cell, options).error, found.folder / LOG_FILE
    )


def _repeat_warnings(cell: Cell, options: StudyOptions, said: set[str]) -> None:
    """Repeat what the cell warned of in its log, unless another cell has said the same."""
    result = outcome_of(cell, options).result
    for warning in [] if result is None else result.get("warnings", []):
        if warning not in said:
            said.add(warning)
            _log.warning("%s: %s", cell.name, warning)


def main_judge(result: CellResult) -> float | None:
    """The main judge's mean; None where it scores no response."""
    found = result["metrics"]["reward"]
    return None if found is None else float(found["mean"])


def _to_choose_by(options: StudyOptions) -> list[Cell]:
    """The choosing cells to run.

    A sweep with a chosen setting needs none. Where `only` selects a cell that waits for the choice, they are all of the sweep's; otherwise those
    that `only` selects themselves.
    """
    frozen = read_json(Path(options.output_dir) / CHOSEN_FILE)
    found: list[Cell] = []
    for sweep in sweeps_of(options):
        if not _is_frozen(sweep, frozen, options):
            every = any(is_wanted(sweep, sweep, seed, options) for seed in options.seeds)
            cells = choosing_cells(sweep, options)
            found += [cell for cell in cells if every or is_wanted(cell.line, cell.line, cell.seed, options)]
    return found
