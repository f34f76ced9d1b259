"""A study's trainings, which are stored apart from its cells, by what they depend on. Several cells, and trainings that build on them, share one."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

from filelock import AcquireReturnProxy, FileLock, Timeout

from frugalign.base.errors import FrugalignError
from frugalign.base.files import write_json_atomic
from frugalign.base.json_files import read_json
from frugalign.base.specs import names_code
from frugalign.runs.layout import LOCK_FILE
from frugalign.runs.lock import delete_leftovers, holding
from frugalign.study.layout import (
    LEARNED_FROM,
    RUN_FOLDER,
    TRAINED_FILE,
    Trained,
    length_file,
    read_trained,
    training_run,
)
from frugalign.study.plan import training_folder

if TYPE_CHECKING:
    from frugalign.methods.budget import Budget

_LENGTH_PROMPTS = 64


def trained(
    request: dict[str, Any], trainings: Path, budget: Callable[[], Budget], *, jobs: int, warnings: Sequence[str] = ()
) -> Trained:
    """The finished training of a request, or a new one: the policy to measure, the training's costs, machine and warnings.

    Args:
        trainings: the folder of the trainings. If another process is running the same one, this one waits for it.
        budget: of a new training.
        jobs: cells that the runner runs at once, for the record of the machine.
        warnings: those logged so far, to which a new training adds its own.

    Raises:
        FrugalignError: a user error.
    """
    folder = training_folder(request, trainings)
    folder.mkdir(parents=True, exist_ok=True)
    with _waited_for(folder), holding(folder):
        delete_leftovers(folder)
        return _trained(request, folder, budget, jobs, warnings)


def _waited_for(training: Path) -> AcquireReturnProxy[FileLock]:
    """The training's lock. If another cell, possibly of another study, holds it, the log says so."""
    lock = FileLock(training / LOCK_FILE)
    try:
        return lock.acquire(timeout=0)
    except Timeout:
        print(f"Waiting for another process that is running the same training in {training}.", flush=True)
        return lock.acquire()


def _trained(
    request: dict[str, Any], folder: Path, budget: Callable[[], Budget], jobs: int, warnings: Sequence[str]
) -> Trained:
    from frugalign.methods import registry
    from frugalign.study.task import Task

    run = str(training_run(folder))
    done = read_trained(folder)
    if done is not None and (training_run(folder).is_dir() or RUN_FOLDER not in done["policy"].values()):
        _check_stored(done["policy"], request, folder / TRAINED_FILE)
        return {**done, "policy": _replaced(done["policy"], RUN_FOLDER, run)}
    for left in (RUN_FOLDER, *LEARNED_FROM):
        path = folder / left
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    task = Task(request, folder, budget(), jobs=jobs)
    train = registry.get(request["method"]).run
    assert train is not None, "the plan has no line for a method that trains no policy"
    began = time.process_time()
    policy = train(task)
    cpu = time.process_time() - began + task.cpu_elsewhere
    where = machine(use_cpu=bool(request.get("use_cpu")), jobs=jobs)
    found: Trained = {
        "policy": policy,
        "costs": {**task.ledger.to_dict(), "cpu_seconds": round(cpu, 3)},
        "machine": where,
        "warnings": list(warnings),
    }
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


def budget_of(request: dict[str, Any], start: Path) -> Budget:
    """The budget of a training. `start`: the folder where the base's mean response length is stored."""
    from frugalign.methods.budget import Budget

    given = request.get("budget") or {}
    return Budget(**given, mean_length=mean_length(request, start) if "generated_tokens" in given else 1.0)


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
