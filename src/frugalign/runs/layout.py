"""The files of a run folder: every file name once, and a typed reader for every file that other packages read.

    runs/mine/
      .lock                 held while a command uses the folder
      config.yaml           every option as it ran
      metrics.jsonl         the log, one line per logging step
      costs.json            the ledger of the training
      completions.jsonl     sample completions of every logged rollout (proxy)
      groups/               epoch-000.jsonl: the ranking of an epoch; shift.jsonl: stored responses (rerank)
      shift.json            the reward and the noise floor of the shift (rerank, shift_reward)
      reward_report.json    accuracy and controls of a representation reward
      pairs_report.json     accuracy of a proxy from pairs on held-out pairs, with baselines
      trained_on.json       the prompts that an adapter or a model was trained on
      checkpoint-40/        Trainer's files, frugalign.json (our state) and hashes.json (of the other files); written in
                            .frugalign-saving/ and moved into place whole
      model.safetensors …   the artefact; see `frugalign.base.files`
      report.html           the page
    runs/mine/evaluation/
      metrics.json, samples.jsonl, costs.json
                            directly in a training's folder: evaluation_costs.json
    runs/mine/              PSLE also writes
      run.json              the settings at the start of the run, and σ_0
      start/                the evaluation before round 0
      round-000/            responses.jsonl, metrics.jsonl, the policy, evaluation.json, evaluation.jsonl, costs.json, and
                            manifest.json. That is written last, so a round without it is incomplete.
                            responses.costs.json and evaluation.costs.json are the parts of costs.json that a resumed round
                            does not spend again; each is written before what it paid for.

Nothing here imports torch. A reader returns an empty value for a missing file, and raises FrugalignError for invalid JSON.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, TypedDict, cast

from frugalign.base.errors import FrugalignError
from frugalign.base.files import ADAPTER_WEIGHTS_FILE, WEIGHTS_FILE
from frugalign.base.files import STAGING_FOLDER as STAGING_FOLDER
from frugalign.base.json_files import read_json, read_lines
from frugalign.base.ledger import Costs
from frugalign.base.parsing import read_yaml

FINISHED_MARKS = (WEIGHTS_FILE, f"{WEIGHTS_FILE}.index.json", ADAPTER_WEIGHTS_FILE)
"""The files of weights. One of them is written last, so a run folder with one is finished."""
LOCK_FILE = ".lock"
CONFIG_FILE = "config.yaml"
LOG_FILE = "metrics.jsonl"
COSTS_FILE = "costs.json"
COMPLETIONS_FILE = "completions.jsonl"
GROUPS_FOLDER = "groups"
SHIFT_FILE = "shift.json"
REWARD_REPORT_FILE = "reward_report.json"
PAIRS_REPORT_FILE = "pairs_report.json"
TRAINED_ON_FILE = "trained_on.json"
CHECKPOINT_PREFIX = "checkpoint-"
CHECKPOINT_STATE_FILE = "frugalign.json"
CHECKPOINT_HASHES_FILE = "hashes.json"
REPORT_FILE = "report.html"

METRICS_FILE = "metrics.json"
SAMPLES_FILE = "samples.jsonl"
EVALUATION_COSTS_FILE = "evaluation_costs.json"
LM_EVAL_FILE = "lm_eval.json"

RUN_FILE = "run.json"
START_FOLDER = "start"
ROUND_PREFIX = "round-"
RESPONSES_FILE = "responses.jsonl"
RESPONSES_COSTS_FILE = "responses.costs.json"
MANIFEST_FILE = "manifest.json"
ROUND_METRICS_FILE = "evaluation.json"
ROUND_METRICS_COSTS_FILE = "evaluation.costs.json"
ROUND_SAMPLES_FILE = "evaluation.jsonl"


# -- every run --------------------------------------------------------------------------------------------------------


def read_settings(folder: Path) -> dict[str, Any]:
    """Every option of the run, by name."""
    path = folder / CONFIG_FILE
    found = read_yaml(path, "settings") if path.exists() else {}
    if not isinstance(found or {}, dict):
        raise FrugalignError(f"{path} is damaged: it does not hold options by name.")
    return found or {}


class _LogLine(TypedDict):
    step: int


def read_log(folder: Path) -> list[dict[str, Any]]:
    """The log lines: `step`, `epoch` and the trainer's measures. A line that a crash truncated is left out."""
    return read_lines(folder / LOG_FILE, _LogLine)


def read_costs(folder: Path, name: str = COSTS_FILE) -> Costs:
    """The ledger of the training in this folder, or of the evaluation if the folder holds nothing else."""
    return cast(Costs, read_json(folder / name, Costs))


def read_trained_on(folder: Path) -> dict[str, Any]:
    """The prompts that the adapter or model in this folder was trained on, as `training_data_record` describes them."""
    return read_json(folder / TRAINED_ON_FILE, _TrainedOn)


class _TrainedOn(TypedDict, total=False):
    name: str | None
    fingerprint: str
    held_out_fraction: float
    seed: int


def is_finished(folder: Path) -> bool:
    """Whether the run in this folder has saved its artefact."""
    return any((folder / name).exists() for name in FINISHED_MARKS)


def checkpoint_folder(folder: Path, step: int) -> Path:
    """The folder of the checkpoint at an optimiser step."""
    return folder / f"{CHECKPOINT_PREFIX}{step}"


def checkpoints_in(folder: Path) -> list[Path]:
    """The complete checkpoints, oldest first."""
    found = [path for path in folder.glob(f"{CHECKPOINT_PREFIX}*") if _number_of(path, CHECKPOINT_PREFIX) is not None]
    complete = [path for path in found if (path / CHECKPOINT_STATE_FILE).is_file()]
    return sorted(complete, key=lambda path: _number_of(path, CHECKPOINT_PREFIX) or 0)


def ranking_file(folder: Path, epoch: int) -> Path:
    """The file of an epoch's ranked groups. Epochs count from 0."""
    return folder / GROUPS_FOLDER / f"epoch-{epoch:03d}.jsonl"


def rankings_in(folder: Path) -> list[Path]:
    """The files of all epochs' ranked groups, oldest first."""
    return sorted(folder.glob(f"{GROUPS_FOLDER}/epoch-*.jsonl"))


def shift_responses_file(folder: Path) -> Path:
    """The file of the stored responses on which the shift is measured."""
    return folder / GROUPS_FOLDER / "shift.jsonl"


class ShiftFloor(TypedDict):
    """Wasserstein distance between two sample sets of the same model: its mean, and its 97.5 % quantile."""

    mean: float
    high: float


class ShiftStart(TypedDict):
    """`reward`: the name of a reward that is not trained on. `prompts`: their number. `responses`: responses per prompt."""

    floor: ShiftFloor
    reward: str
    prompts: int
    responses: int


def read_shift(folder: Path) -> ShiftStart | None:
    """The reward and the noise floor of a re-ranking run's shift; None if it was not measured."""
    found = read_json(folder / SHIFT_FILE, ShiftStart)
    return cast(ShiftStart, found) if found else None


def read_reward_report(folder: Path) -> dict[str, Any] | None:
    """The report that `train_reward` returned; None if there is none."""
    return read_json(folder / REWARD_REPORT_FILE) or None


class PairsReport(TypedDict):
    """How often held-out pairs are ordered as labelled. `split`: test, or validation, which also stopped the training.

    `accuracy`: an `Estimate` by what orders them: `implicit_reward`, `probes` if there are any, `bag_of_words`, `length_only`.
    """

    split: str
    pairs: int
    prompts: int
    accuracy: dict[str, dict[str, float | int]]


def read_pairs_report(folder: Path) -> PairsReport | None:
    """The accuracy on held-out pairs of a proxy that learned from pairs; None if there is none."""
    found = read_json(folder / PAIRS_REPORT_FILE, PairsReport)
    return cast(PairsReport, found) if found else None


# -- an evaluation ----------------------------------------------------------------------------------------------------


class Sample(TypedDict):
    """A prompt (text or messages), the base's completion and the policy's, and their rewards by name."""

    prompt: Any
    base: str
    policy: str
    base_rewards: dict[str, float | None]
    rewards: dict[str, float | None]


def has_evaluation(folder: Path) -> bool:
    """Whether this folder itself holds an evaluation."""
    return (folder / METRICS_FILE).is_file()


def evaluation_of(folder: Path) -> Path:
    """The folder of a run's evaluation: the run folder itself, else the newest evaluation directly below it.

    Without any evaluation, the run folder is returned.
    """
    if has_evaluation(folder):
        return folder
    below = sorted(folder.glob(f"*/{METRICS_FILE}"), key=lambda path: path.stat().st_mtime)
    return below[-1].parent if below else folder


class Estimate(TypedDict):
    """A mean with its 95 % interval over `n` values."""

    mean: float
    ci_low: float | None
    ci_high: float | None
    n: int


class _Metrics(TypedDict, total=False):
    settings: dict[str, Any]
    reward: Estimate | None
    rewards: dict[str, Estimate | None]
    base_rewards: dict[str, Estimate | None]


def read_metrics(folder: Path) -> dict[str, Any]:
    """What `evaluate` returned."""
    return read_json(folder / METRICS_FILE, _Metrics)


def read_samples(folder: Path) -> list[Sample]:
    """Every completion that was evaluated, prompt by prompt."""
    return cast(list[Sample], read_lines(folder / SAMPLES_FILE, Sample, whole=True))


def evaluation_costs_file(folder: Path) -> Path:
    """The file of an evaluation's costs. In a training's own folder, costs.json belongs to the training."""
    return folder / (EVALUATION_COSTS_FILE if (folder / LOG_FILE).is_file() else COSTS_FILE)


def read_evaluation_costs(folder: Path) -> Costs:
    """The costs of an evaluation that was written into a training's folder."""
    return read_costs(folder, EVALUATION_COSTS_FILE)


# -- PSLE's rounds ----------------------------------------------------------------------------------------------------


class Manifest(TypedDict, total=False):
    """The record of a complete round. `frugalign.methods.psle.folders.describe_responses` computes most of it.

    `start`, `end`: hashes of base and weights. `principles`: their hash, or None. `threshold`: τ·σ_0. `branches`: couples
    per branch. `rewards`: mean and std of the plain and the guided responses. `use`, `use_of_raft`: shares of tokens and
    responses that are learned from.
    """

    round: int
    start: dict[str, Any]
    end: dict[str, Any]
    prompts: dict[str, Any]
    principles: str | None
    tau: float
    reward_scale: float
    threshold: float
    branches: dict[str, int]
    rewards: dict[str, dict[str, float]]
    reward_metrics: dict[str, float]
    use: dict[str, float]
    use_of_raft: dict[str, float]
    responses: dict[str, int]
    reward_calls: int
    optimizer_steps: int
    settings: dict[str, Any]


def round_folder(folder: Path, number: int) -> Path:
    """The folder of a round. Rounds count from 0."""
    return folder / f"{ROUND_PREFIX}{number:03d}"


def rounds_in(folder: Path) -> list[int]:
    """The numbers of the rounds that have a folder, complete or not."""
    found = [(_number_of(path, ROUND_PREFIX), path) for path in folder.glob(f"{ROUND_PREFIX}*")]
    return sorted(number for number, path in found if number is not None and path == round_folder(folder, number))


def read_manifest(folder: Path) -> Manifest | None:
    """The manifest in a round's folder; None if the round is incomplete."""
    path = folder / MANIFEST_FILE
    return cast(Manifest, read_json(path, Manifest)) if path.exists() else None


class _Responses(TypedDict, total=False):
    rewards: list[float | None]
    by_reward: dict[str, Any]


def read_responses(folder: Path) -> list[dict[str, Any]]:
    """The lines of a round's responses, hardly checked. PSLE's `read_round` checks them."""
    return read_lines(folder / RESPONSES_FILE, _Responses, whole=True)


def read_round_metrics(folder: Path) -> dict[str, Any]:
    """Means with intervals over the held-out prompts, in a round's folder or in `start`."""
    return read_json(folder / ROUND_METRICS_FILE, _Metrics)


class _RoundSample(TypedDict):
    prompt: Any
    completion: str


def read_round_samples(folder: Path) -> list[dict[str, Any]]:
    """The completions of the held-out prompts, in a round's folder or in `start`."""
    return read_lines(folder / ROUND_SAMPLES_FILE, _RoundSample, whole=True)


def read_run_state(folder: Path) -> dict[str, Any]:
    """The settings of a PSLE run and, once round 0 is scored, its `reward_scale`. Empty before the run starts."""
    return read_json(folder / RUN_FILE, _RunState)


class _RunState(TypedDict, total=False):
    reward_scale: float


def _number_of(path: Path, prefix: str) -> int | None:
    """40 for `checkpoint-40`; None for other names."""
    digits = path.name.removeprefix(prefix)
    return int(digits) if re.fullmatch(r"\d+", digits) else None
