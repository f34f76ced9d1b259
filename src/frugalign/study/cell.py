"""Run one cell of a study in its own process: `python -m frugalign.study.cell FOLDER …` trains, evaluates, and writes `cell.json`.

The folder's `request.json` holds everything that the result depends on. A cell that fails leaves `failed.json`, with one sentence, instead of a
result. Trainings are stored apart from cells, by what they depend on. A cell that only tests the same training differently does not train again.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

from filelock import AcquireReturnProxy, FileLock, Timeout

from frugalign.base.errors import FrugalignError
from frugalign.base.files import write_json_atomic
from frugalign.base.json_files import read_json
from frugalign.base.specs import names_code
from frugalign.runs.layout import LOCK_FILE, read_costs
from frugalign.runs.lock import delete_leftovers, holding, in_use
from frugalign.study.layout import (
    FAILED_FILE,
    LEARNED_FROM,
    RESULT_FILE,
    RUN_FOLDER,
    TRACE_FILE,
    TRAINED_FILE,
    CellResult,
    TracePiece,
    Trained,
    evaluation_folder,
    length_file,
    read_request,
    read_trained,
    training_run,
)
from frugalign.study.plan import IN_CONTEXT, hashes_of, training_folder

if TYPE_CHECKING:
    from frugalign.evaluation.settings import EvaluationSettings
    from frugalign.policies.policy import Policy

SHOWN = 3
"""Prompts whose answers the page shows."""
_LENGTH_PROMPTS = 64
_DYING = 5.0
"""Seconds within which the cells of a killed runner end."""
_TEST_SEED = 1000
"""Added to a cell's seed. It keeps the test's noise apart from the training's, and equal for every method."""


def run_cell(folder: Path, start: Path, trainings: Path, *, batch_size: int = 64, jobs: int = 1) -> CellResult:
    """Train and evaluate what `request.json` describes, and write `cell.json`. A finished training is reused.

    Args:
        start: a folder beside the cells that stores measurements of the base.
        trainings: the folder of the trainings. If another cell is running the same one, this cell waits for it.
        batch_size: responses sampled at once in the test; no result depends on it.
        jobs: cells that the runner runs at once, for the record of the machine.

    Raises:
        FrugalignError: a user error, or another process that runs this cell.
    """
    request = read_request(folder)
    with in_use(folder, wait=_DYING), _warnings() as warnings:
        if changed := [
            name for name, digest in hashes_of(request["contents"]).items() if digest != request["contents"][name]
        ]:
            raise FrugalignError(
                f"{changed[0]} has changed since the study began. Run the study's command again to use its new content."
            )
        training = training_folder(request, trainings)
        training.mkdir(parents=True, exist_ok=True)
        with _waited_for(training), holding(training):
            delete_leftovers(training)
            trained = _trained(request, training, start, jobs, warnings)
        result: CellResult = {
            "request": request,
            "metrics": _evaluated(request, trained, evaluation_folder(folder), batch_size, start),
            "costs": trained["costs"],
            "evaluation_costs": read_costs(evaluation_folder(folder)),
            "machine": machine(use_cpu=bool(request.get("use_cpu")), jobs=jobs),
            "training_machine": trained.get("machine"),
            "warnings": list(dict.fromkeys([*trained.get("warnings", []), *warnings])),
        }
        write_json_atomic(folder / RESULT_FILE, result)
        (folder / FAILED_FILE).unlink(missing_ok=True)
    return result


@contextmanager
def _warnings() -> Iterator[list[str]]:
    """The warnings that frugalign logs inside the block."""
    found: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            found.append(record.getMessage())

    logger, handler = logging.getLogger("frugalign"), Keep(logging.WARNING)
    # Logging's own last resort is off once there is a handler.
    handlers = [handler] if logger.hasHandlers() else [handler, logging.StreamHandler()]
    for each in handlers:
        logger.addHandler(each)
    try:
        yield found
    finally:
        for each in handlers:
            logger.removeHandler(each)


def _evaluated(request: dict[str, Any], trained: Trained, folder: Path, batch_size: int, start: Path) -> dict[str, Any]:
    """The metrics of what was trained, on the test prompts or, for a choosing cell, the validation prompts.

    `folder`: for what it writes. `start`: for the base's answers, which the cells share.
    """
    from frugalign.evaluation import EvaluationSettings, evaluate
    from frugalign.policies import loading as policies
    from frugalign.policies.spec import PolicySpec
    from frugalign.rewards import load_rewards
    from frugalign.study.task import prompt_splits

    rows = prompt_splits(request)["validation" if request["kind"] == "choosing" else "test"]
    rows = rows.select(range(min(len(rows), request.get("eval_prompts") or len(rows))))
    measures = list(dict.fromkeys([*request["judges"], *request.get("reward", [])]))
    device = "cpu" if request.get("use_cpu") else None
    more = {"model_name_or_path": request["model_name_or_path"], "device_map": device}
    spec = PolicySpec.from_dict(trained["policy"], **more, principles=request.get(IN_CONTEXT))
    base = policies.load_base(spec)
    rewards = load_rewards(measures, device=str(base.model.device))
    policy = policies.load(spec, base=base, rewards=rewards)
    settings = EvaluationSettings(
        max_new_tokens=request["max_new_tokens"],
        temperature=None if spec.proxy else request["temperature"],
        prompt_format=request["prompt_format"],
        chat_template_kwargs=request.get("chat_template_kwargs"),
        do_sample=request["eval_do_sample"] or spec.best_of_n is not None,
        num_samples=request["eval_samples"],
        batch_size=batch_size,
        seed=_TEST_SEED + request["seed"],
    )
    metrics = evaluate(policy, rows, rewards, settings, output_dir=folder, base_answers=start)
    if spec.proxy and request["eval_do_sample"]:
        write_json_atomic(folder / TRACE_FILE, traces(policy, rows, settings))
    return metrics


def _waited_for(training: Path) -> AcquireReturnProxy[FileLock]:
    """The training's lock. If another cell, possibly of another study, holds it, the log says so."""
    lock = FileLock(training / LOCK_FILE)
    try:
        return lock.acquire(timeout=0)
    except Timeout:
        print(f"Waiting for another process that is running the same training in {training}.", flush=True)
        return lock.acquire()


def _trained(request: dict[str, Any], folder: Path, start: Path, jobs: int, warnings: list[str]) -> Trained:
    """The finished training of this folder, or a new one: the policy to measure, the training's costs, machine and warnings.

    `warnings`: those logged so far, to which a new training adds its own.
    """
    from frugalign.methods import registry
    from frugalign.methods.budget import Budget
    from frugalign.study.task import Task

    run = str(training_run(folder))
    done = read_trained(folder)
    if done is not None and (training_run(folder).is_dir() or RUN_FOLDER not in done["policy"].values()):
        _check_stored(done["policy"], request, folder / TRAINED_FILE)
        return {**done, "policy": _replaced(done["policy"], RUN_FOLDER, run)}
    for left in (RUN_FOLDER, *LEARNED_FROM):
        path = folder / left
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    given = request.get("budget") or {}
    length = mean_length(request, start) if "generated_tokens" in given else 1.0
    task = Task(request, folder, Budget(**given, mean_length=length))
    train = registry.get(request["method"]).run
    assert train is not None, "the plan has no line for a method that trains no policy"
    policy = train(task)
    where = machine(use_cpu=bool(request.get("use_cpu")), jobs=jobs)
    found: Trained = {"policy": policy, "costs": task.ledger.to_dict(), "machine": where, "warnings": list(warnings)}
    # The folder may be moved or shared between studies, so the run's path is stored relative to it.
    write_json_atomic(folder / TRAINED_FILE, {**found, "policy": _replaced(policy, run, RUN_FOLDER)})
    return found


def _check_stored(policy: dict[str, Any], request: dict[str, Any], file: Path) -> None:
    """Refuse code that a stored policy names and the study does not: the folder may come from elsewhere."""
    known = set(_texts(request))
    if unknown := [text for text in _texts(policy) if names_code(text) and text not in known]:
        raise FrugalignError(f"{file} names {unknown[0]!r}, which this study does not name. Stored code is never run.")


def _texts(value: Any) -> list[str]:
    """Every string in a JSON value, except for the names of fields."""
    if isinstance(value, dict):
        value = list(value.values())
    return [text for each in value for text in _texts(each)] if isinstance(value, list) else [str(value)]


def _replaced(policy: dict[str, Any], old: str, new: str) -> dict[str, Any]:
    """The policy with the path `old` replaced by `new`."""
    return {name: new if value == old else value for name, value in policy.items()}


def traces(policy: Policy, rows: Any, settings: EvaluationSettings) -> dict[str, list[TracePiece]]:
    """What a proxy proposed and rejected in the tested answers that the page shows: by row, each token's text and the texts rejected before it."""
    from frugalign.policies.answer import rejected_text, token_texts
    from frugalign.policies.policy import Record
    from frugalign.policies.prompt_rows import PromptRows

    shown, tokenizer = shown_rows(len(rows)), policy.base.tokenizer
    settled = policy.with_defaults(settings)
    batch = policy.encode(PromptRows.of(rows.select(shown)), settled, numbers=shown)
    answered = policy.sample(batch, settled, record=Record(trace=True))
    found: dict[str, list[TracePiece]] = {}
    for row, entries in zip(shown, answered.traces or [], strict=True):
        shown_ids = [entry.token for entry in entries]
        pieces = token_texts(shown_ids, tokenizer)
        ends = set(tokenizer.all_special_ids)
        pieces = ["" if token in ends else piece for token, piece in zip(shown_ids, pieces, strict=True)]
        rejected = [[rejected_text(token, tokenizer) for token, _ in each.rejected] for each in entries]
        found[str(row)] = [{"text": a, "rejected": b} for a, b in zip(pieces, rejected, strict=True)]
    return found


def shown_rows(size: int) -> list[int]:
    """The test rows that the page shows, evenly spread."""
    return [number * size // SHOWN for number in range(SHOWN)] if size else []


class _Length(TypedDict):
    mean_length: float


def mean_length(request: dict[str, Any], start: Path) -> float:
    """Mean tokens of the base's responses to 64 training prompts. Measured once, and stored in `start`."""
    sources = ("model_name_or_path", "dataset_name")
    names = (*sources, "holds_out", "max_new_tokens", "temperature", "prompt_format", "chat_template_kwargs")
    values = [request.get(name) for name in names] + [request["contents"].get(request[name]) for name in sources]
    digest = hashlib.sha256(json.dumps(values).encode()).hexdigest()
    path = length_file(start, digest[:8])
    if path.is_file() and (known := float(read_json(path, _Length)["mean_length"])) > 0:
        return known
    from frugalign.data.templating import Rendering, encode_prompts
    from frugalign.decoding.loop import SamplingParams, generate
    from frugalign.engines.loading import load_model
    from frugalign.engines.transformers import TransformersEngine
    from frugalign.study.task import prompt_splits

    prompts = prompt_splits(request)["train"]["prompt"][:_LENGTH_PROMPTS]
    base = load_model(request["model_name_or_path"], device_map="cpu" if request.get("use_cpu") else None)
    params = SamplingParams(request["max_new_tokens"], request["temperature"])
    rendering = Rendering(request["prompt_format"], request.get("chat_template_kwargs") or {})
    ids = encode_prompts(prompts, base.tokenizer, max_new_tokens=0, rendering=rendering).ids
    found = generate(TransformersEngine(base.model, base.tokenizer), ids, params).completion_ids
    length = sum(map(len, found)) / len(found)
    write_json_atomic(path, {"mean_length": length})
    return length


def machine(*, use_cpu: bool, jobs: int) -> dict[str, Any]:
    """The machine and the library versions behind a result, and how many cells shared the machine."""
    import platform
    from importlib.metadata import version
    from importlib.util import find_spec

    import torch
    import transformers

    from frugalign import __version__

    on_gpu = torch.cuda.is_available() and not use_cpu
    device = torch.cuda.get_device_name() if on_gpu else platform.processor() or platform.machine()
    return {
        "device": device,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "jobs": jobs,
        "frugalign": __version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "trl": version("trl") if find_spec("trl") else "not installed",
    }


def _end_with(runner: int) -> None:
    """End this process when its runner is gone. A runner that is killed cannot stop its cells, and they would run on unnoticed."""
    while os.getppid() == runner:
        time.sleep(1.0)
    os._exit(143)


def main(folder: str, start: str, trainings: str, batch_size: str, jobs: str) -> int:
    """Run one cell. An error is written to `failed.json`."""
    began = time.perf_counter()
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    try:
        from frugalign.base.progress_display import showing

        with showing():
            run_cell(Path(folder), Path(start), Path(trainings), batch_size=int(batch_size), jobs=int(jobs))
    except Exception as error:
        traceback.print_exc()
        said = str(error) if isinstance(error, FrugalignError) else f"{type(error).__name__}: {error}"
        write_json_atomic(
            Path(folder) / FAILED_FILE, {"error": " ".join(said.split()), "seconds": time.perf_counter() - began}
        )
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
