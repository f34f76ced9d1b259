"""Run studies at their smallest setting, to show that they still run. Nothing is recorded, and the numbers mean nothing.

    FRUGALIGN_TRIALS=folder python -m experiments.smoke [STUDY ...]

The default is every file of `studies/`. Every line is kept, with one seed, one response to each of a few prompts, a few training steps, and two
settings of each sweep. All cells run in this process, and each study's page is written under runs/smoke. Scripts have `--smoke` instead.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from frugalign.base.files import write_json_atomic
from frugalign.cli.parser import read_config
from frugalign.reports.study.page import write_study
from frugalign.study.cell import run_cell
from frugalign.study.layout import REQUEST_FILE, START_FOLDER
from frugalign.study.options import StudyOptions
from frugalign.study.plan import Cell, cells_of, choosing_cells
from frugalign.study.runner import outcome_of, read_study, run_study, sweeps_of, trainings_of
from frugalign.study.table import Row, rows_of

STUDIES = Path(__file__).parent / "studies"
WORK = Path("runs/smoke")
SMALLER = {"experiments.trials:instruct_model": "experiments.chat:model"}
"""The model of three million parameters takes the place of the real one, which would take an hour."""
BUDGET = {"generated_tokens": 2_000, "optimizer_steps": 8}


def smallest(study: Path) -> StudyOptions:
    """A study's options with every size near its minimum."""
    given: dict[str, Any] = read_config(str(study), StudyOptions)
    given |= {"seeds": given["seeds"][:1], "eval_prompts": 4, "eval_samples": 1, "max_new_tokens": 24}
    given["model_name_or_path"] = SMALLER.get(given["model_name_or_path"], given["model_name_or_path"])
    given["budget"] = BUDGET  # also of a study that leaves the tokens open, or it would sample for every prompt
    if "choose" in given:
        given["choose"] |= {"prompts": 2}
    given["methods"] = {label: _smaller(setting or {}) for label, setting in given["methods"].items()}
    for folder in {"output_dir", "trainings_dir"} & set(given):
        given[folder] = str(WORK / Path(given[folder]).relative_to("runs"))
    return StudyOptions(**given)


def _smaller(setting: dict[str, Any]) -> dict[str, Any]:
    """A line's options with at most two values in its first sweep, one in the others, and a test at every second step."""
    found, room = {}, 2
    for name, value in setting.items():
        found[name] = value
        if isinstance(value, list):
            found[name], room = value[:room], 1
    return found | {"eval_steps": 2} if "eval_steps" in found else found


def run_here(cells: Sequence[Cell], options: StudyOptions) -> None:
    """Run the missing cells in this process, which takes a tenth of the time. A failure is raised."""
    for cell in cells:
        if outcome_of(cell, options).result is None:
            folder = cell.folder(Path(options.output_dir))
            write_json_atomic(folder / REQUEST_FILE, cell.request)
            run_cell(folder, Path(options.output_dir) / START_FOLDER, trainings_of(options))


def smoke(study: Path) -> Path:
    """Run a study at its smallest and write its page. Returns the page's path."""
    options = smallest(study)
    run_here([cell for sweep in sweeps_of(options) for cell in choosing_cells(sweep, options)], options)
    run_here(cells_of(read_study(options).lines, options), options)
    return write_study(run_study(options), str(study))


def finished_rows(
    study: Path, *, is_smoke: bool, jobs: int = 1, only: Sequence[str] = ()
) -> tuple[StudyOptions, list[Row]]:
    """Run the missing cells of a study, or of its smallest setting. Returns its options and the rows of its table.

    Args:
        only: the lines to run beside `base`. All, if there are none.
    """
    if is_smoke:
        smoke(study)
    options = smallest(study) if is_smoke else StudyOptions(**read_config(str(study), StudyOptions) | {"jobs": jobs})
    if only:
        options.methods = {label: line for label, line in options.methods.items() if label in ("base", *only)}
    return options, rows_of(run_study(options))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("studies", type=Path, nargs="*", default=sorted(STUDIES.glob("*.yaml")), metavar="STUDY")
    for study in parser.parse_args().studies:
        started = time.perf_counter()
        page = smoke(study)
        print(f"{study.stem}: {time.perf_counter() - started:.0f} s, {page}", flush=True)


if __name__ == "__main__":
    main()
