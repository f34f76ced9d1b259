"""The files of a study's folder: each name once, and a typed reader for every file that other packages read.

runs/study/
  .lock                 held while a command runs the study
  study.json, study.md, report.html
  chosen.json           the setting chosen for each sweep
  llm_judge.jsonl       the answers of a judge behind an OpenAI-compatible server
  start/                length-….json: the base's mean response length; answers-….json: its answers to the prompts of a test
  cells/LABEL-HASH/     .lock, request.json (what the result depends on), log.txt, cell.json (the result) or failed.json (why there is none)
    evaluation/         a run's evaluation, trace.json (a proxy's proposals), verdicts-….json (a pairwise judge's)
  trainings/METHOD-HASH/
                        .lock, trained.json (written last), run/ (the training's run folder, see `frugalign.runs.layout`) and what it
                        learned from: prompts/, observed/, preferences/, pairs/, online/, samples/, reward/
  trainings/samples-HASH/
                        .lock, groups.jsonl, costs.json: samples of the base that several methods learn from
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypedDict, cast

from frugalign.base.errors import FrugalignError
from frugalign.base.json_files import read_json
from frugalign.base.ledger import Costs

SUMMARY_FILE = "study.json"
MARKDOWN_FILE = "study.md"
CHOSEN_FILE = "chosen.json"
JUDGE_CACHE_FILE = "llm_judge.jsonl"
START_FOLDER = "start"
CELLS_FOLDER = "cells"
TRAININGS_FOLDER = "trainings"

REQUEST_FILE = "request.json"
LOG_FILE = "log.txt"
RESULT_FILE = "cell.json"
FAILED_FILE = "failed.json"
EVALUATION_FOLDER = "evaluation"
TRACE_FILE = "trace.json"

TRAINED_FILE = "trained.json"
RUN_FOLDER = "run"
PROMPTS_FOLDER = "prompts"
OBSERVED_FOLDER = "observed"
PREFERENCES_FOLDER = "preferences"
PAIRS_FOLDER = "pairs"
ONLINE_FOLDER = "online"
SAMPLES_FOLDER = "samples"
REWARD_FOLDER = "reward"
LEARNED_FROM = (
    *(PROMPTS_FOLDER, OBSERVED_FOLDER, PREFERENCES_FOLDER, PAIRS_FOLDER),
    *(ONLINE_FOLDER, SAMPLES_FOLDER, REWARD_FOLDER),
)
"""What an incomplete training may leave beside its run folder."""
GROUPS_FILE = "groups.jsonl"


class CellResult(TypedDict):
    """What a finished cell measured and cost.

    `request`: everything that the result depends on; `costs`: of the training; `warnings`: what it warned of, in its log too.
    """

    request: dict[str, Any]
    metrics: dict[str, Any]
    costs: Costs
    evaluation_costs: Costs
    machine: dict[str, Any]
    training_machine: dict[str, Any] | None
    warnings: list[str]


class TracePiece(TypedDict):
    """A token's text, and the texts of the tokens that a proxy rejected before it."""

    text: str
    rejected: list[str]


class Trained(TypedDict):
    """A finished training: the policy to measure (the values of a `PolicySpec`), its costs, its machine, and what it warned of."""

    policy: dict[str, Any]
    costs: Costs
    machine: dict[str, Any]
    warnings: list[str]


class _Request(TypedDict, total=False):
    method: str
    seed: int
    kind: str
    contents: dict[str, str]
    setting: dict[str, Any]


def read_request(cell: Path) -> dict[str, Any]:
    """Everything that the cell's result depends on.

    Raises:
        FrugalignError: a folder without it.
    """
    if not (cell / REQUEST_FILE).is_file():
        raise FrugalignError(f"{cell} is not a cell of a study: it has no {REQUEST_FILE}.")
    return read_json(cell / REQUEST_FILE, _Request)


class _Result(TypedDict):
    """What every reader needs of a result; see `CellResult`."""

    request: dict[str, Any]
    metrics: dict[str, Any]
    costs: dict[str, Any]


class _Training(TypedDict, total=False):
    policy: dict[str, Any]
    costs: dict[str, Any]
    warnings: list[str]


def read_result(cell: Path) -> CellResult | None:
    """The cell's result; None where it has none yet."""
    return cast(CellResult, read_json(cell / RESULT_FILE, _Result)) if (cell / RESULT_FILE).exists() else None


def read_failure(cell: Path) -> str | None:
    """Why the cell failed, in a sentence; None where it did not."""
    said = read_json(cell / FAILED_FILE).get("error")
    return None if said is None else str(said)


def read_trained(training: Path) -> Trained | None:
    """What a finished training left; None for an incomplete one."""
    path = training / TRAINED_FILE
    return cast(Trained, read_json(path, _Training)) if path.exists() else None


def evaluation_folder(cell: Path) -> Path:
    """The folder of the cell's evaluation, which the readers of `frugalign.runs.layout` read."""
    return cell / EVALUATION_FOLDER


def verdicts_file(cell: Path, digest: str) -> Path:
    """The file of a pairwise judge's verdicts on the cell's responses. `digest`: of the judge and the reference."""
    return evaluation_folder(cell) / f"verdicts-{digest}.json"


def length_file(start: Path, digest: str) -> Path:
    """The file of the base's mean response length. `digest`: of the base, the prompts and the sampling."""
    return start / f"length-{digest}.json"


def read_trace(cell: Path, row: int) -> list[TracePiece] | None:
    """What a proxy proposed for its answer to this test row; None where that was not recorded."""
    return cast(list[TracePiece] | None, read_json(evaluation_folder(cell) / TRACE_FILE).get(str(row)))


def training_run(training: Path) -> Path:
    """The training's run folder."""
    return training / RUN_FOLDER


def fitted_reward(training: Path) -> Path:
    """The run folder of the representation reward that was fitted for this training."""
    return training / REWARD_FOLDER
