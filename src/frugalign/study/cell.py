"""One cell of a study in a process of its own: `python -m frugalign.study.cell FOLDER …` trains, evaluates, and leaves `cell.json`.

The folder's `asks.json` says what is asked. A cell that fails leaves `failed.json` with a sentence in place of a result. What it trains lies in a folder of
its own, by what the training depends on: a cell that asks for another test of the same training does not train again.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import AcquireReturnProxy, FileLock, Timeout

from frugalign.base.errors import FrugalignError
from frugalign.base.files import write_json_atomic
from frugalign.runs.layout import LOCK_FILE, read_costs
from frugalign.runs.lock import in_use
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
    read_asks,
    read_trained,
    training_run,
)
from frugalign.study.plan import hashes_of, training_folder

if TYPE_CHECKING:
    from frugalign.evaluation.settings import EvaluationSettings
    from frugalign.policies.policy import Policy

SHOWN = 3
"""Prompts whose answers the page shows."""
_LENGTH_PROMPTS = 64
_TEST_SEED = 1000
"""Added to a cell's seed: the test's noise is not the training's, and is the same for every method."""


def run_cell(folder: Path, start: Path, trainings: Path, *, batch_size: int = 64, jobs: int = 1) -> CellResult:
    """Train and evaluate what `asks.json` asks for, and write `cell.json`; a training that is done already is not done again.

    Args:
        start: a folder beside the cells that keeps what is known of the base.
        trainings: the folder of the trainings; one that another cell is at work on is waited for.
        batch_size: responses sampled at once in the test; no result depends on it.
        jobs: cells that the runner has at work at once, for the record of the machine.

    Raises:
        FrugalignError: whatever the user can mend; another process that works on this cell.
    """
    from frugalign.evaluation import EvaluationSettings, evaluate
    from frugalign.policies import policy as policies
    from frugalign.policies.spec import PolicySpec
    from frugalign.rewards import load_rewards
    from frugalign.study.task import prompt_splits

    asks = read_asks(folder)
    with in_use(folder):
        if changed := [
            name for name, digest in hashes_of(asks["contents"]).items() if digest != asks["contents"][name]
        ]:
            raise FrugalignError(
                f"{changed[0]} has changed since the study began; the same command asks for what it holds now."
            )
        rows = prompt_splits(asks)["validation" if asks["kind"] == "choosing" else "test"]
        rows = rows.select(range(min(len(rows), asks.get("eval_prompts") or len(rows))))
        measures = list(dict.fromkeys([*asks["judges"], *asks.get("reward", [])]))
        training = training_folder(asks, trainings)
        training.mkdir(parents=True, exist_ok=True)
        with _waited_for(training):
            trained = _trained(asks, training, start, jobs)
        device = "cpu" if asks.get("use_cpu") else None
        spec = PolicySpec.from_dict(trained["policy"], model_name_or_path=asks["model_name_or_path"], device_map=device)
        base = policies.load_base(spec)
        rewards = load_rewards(measures, device=str(base.model.device))
        policy = policies.load(spec, base=base, rewards=rewards)
        settings = EvaluationSettings(
            max_new_tokens=asks["max_new_tokens"],
            temperature=None if spec.proxy else asks["temperature"],
            prompt_format=asks["prompt_format"],
            do_sample=asks["eval_do_sample"] or spec.best_of_n is not None,
            num_samples=asks["eval_samples"],
            batch_size=batch_size,
            seed=_TEST_SEED + asks["seed"],
        )
        metrics = evaluate(policy, rows, rewards, settings, output_dir=evaluation_folder(folder))
        if spec.proxy and asks["eval_do_sample"]:
            write_json_atomic(evaluation_folder(folder) / TRACE_FILE, traces(policy, rows, settings))
        result: CellResult = {
            "asks": asks,
            "metrics": metrics,
            "costs": trained["costs"],
            "evaluation_costs": read_costs(evaluation_folder(folder)),
            "machine": machine(use_cpu=bool(asks.get("use_cpu")), jobs=jobs),
            "training_machine": trained.get("machine"),
        }
        write_json_atomic(folder / RESULT_FILE, result)
        (folder / FAILED_FILE).unlink(missing_ok=True)
    return result


def _waited_for(training: Path) -> AcquireReturnProxy[FileLock]:
    """The training's lock; where another cell, of another study perhaps, is at work on the same, the log says so."""
    lock = FileLock(training / LOCK_FILE)
    try:
        return lock.acquire(timeout=0)
    except Timeout:
        print(f"Waiting for another process that trains the same in {training}.", flush=True)
        return lock.acquire()


def _trained(asks: dict[str, Any], folder: Path, start: Path, jobs: int) -> Trained:
    """What `evaluate` is to measure (`policy`), what its training cost and on which machine: of a training in this folder that ended, else of a new one."""
    from frugalign.methods import registry
    from frugalign.methods.budget import Budget
    from frugalign.study.task import Task

    run = str(training_run(folder))
    done = read_trained(folder)
    if done is not None and (training_run(folder).is_dir() or RUN_FOLDER not in done["policy"].values()):
        return {**done, "policy": _replaced(done["policy"], RUN_FOLDER, run)}
    for left in (RUN_FOLDER, *LEARNED_FROM):
        path = folder / left
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    given = asks.get("budget") or {}
    length = mean_length(asks, start) if "generated_tokens" in given else 1.0
    task = Task(asks, folder, Budget(**given, mean_length=length))
    train = registry.get(asks["method"]).run
    assert train is not None, "the plan has no line for a method that trains no policy"
    policy = train(task)
    where = machine(use_cpu=bool(asks.get("use_cpu")), jobs=jobs)
    found: Trained = {"policy": policy, "costs": task.ledger.to_dict(), "machine": where}
    # The folder may be moved, or be another study's: the run is stored as lying inside it.
    write_json_atomic(folder / TRAINED_FILE, {**found, "policy": _replaced(policy, run, RUN_FOLDER)})
    return found


def _replaced(policy: dict[str, Any], old: str, new: str) -> dict[str, Any]:
    """The policy with one folder in place of another."""
    return {name: new if value == old else value for name, value in policy.items()}


def traces(policy: Policy, rows: Any, settings: EvaluationSettings) -> dict[str, list[TracePiece]]:
    """The proposals behind a proxy's first answers to the prompts that the page shows, the very answers that are tested: by row a list of
    token texts and what was rejected before each."""
    from frugalign.policies.answer import token_texts
    from frugalign.policies.policy import Record
    from frugalign.policies.prompt_rows import PromptRows

    shown, tokenizer = shown_rows(len(rows)), policy.base.tokenizer
    settled = policy.settled(settings)
    batch = policy.encode(PromptRows.of(rows.select(shown)), settled, numbers=shown)
    answered = policy.sample(batch, settled, record=Record(trace=True))
    found: dict[str, list[TracePiece]] = {}
    for row, entries in zip(shown, answered.traces or [], strict=True):
        shown_ids = [entry.token for entry in entries]
        pieces = token_texts(shown_ids, tokenizer)
        ends = set(tokenizer.all_special_ids)
        pieces = ["" if token in ends else piece for token, piece in zip(shown_ids, pieces, strict=True)]
        rejected = [[str(tokenizer.decode([token])).strip() or "␣" for token, _ in e.rejected] for e in entries]
        found[str(row)] = [{"text": a, "rejected": b} for a, b in zip(pieces, rejected, strict=True)]
    return found


def shown_rows(size: int) -> list[int]:
    """Rows of the test that the page shows, evenly spread."""
    return [number * size // SHOWN for number in range(SHOWN)] if size else []


def mean_length(asks: dict[str, Any], start: Path) -> float:
    """Tokens of a response of the base, over 64 training prompts; measured once for everything that it depends on, and kept in `start`."""
    sources = ("model_name_or_path", "dataset_name")
    names = (*sources, "holds_out", "max_new_tokens", "temperature", "prompt_format")
    asked = [asks.get(name) for name in names] + [asks["contents"].get(asks[name]) for name in sources]
    digest = hashlib.sha256(json.dumps(asked).encode()).hexdigest()
    path = length_file(start, digest[:8])
    if path.is_file():
        return float(json.loads(path.read_text())["mean_length"])
    from frugalign.data import encode_prompts
    from frugalign.decoding.loop import SamplingParams, generate
    from frugalign.engines.loading import load_model
    from frugalign.engines.transformers import TransformersEngine
    from frugalign.study.task import prompt_splits

    prompts = prompt_splits(asks)["train"]["prompt"][:_LENGTH_PROMPTS]
    base = load_model(asks["model_name_or_path"], device_map="cpu" if asks.get("use_cpu") else None)
    params = SamplingParams(asks["max_new_tokens"], asks["temperature"])
    ids = encode_prompts(prompts, base.tokenizer, max_new_tokens=0, prompt_format=asks["prompt_format"]).ids
    found = generate(TransformersEngine(base.model, base.tokenizer), ids, params).completion_ids
    length = sum(map(len, found)) / len(found)
    write_json_atomic(path, {"mean_length": length})
    return length


def machine(*, use_cpu: bool, jobs: int) -> dict[str, Any]:
    """The machine and the versions behind a result, and how many cells shared it."""
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
    """End this process as soon as its runner is gone: killed without a chance to stop its cells, it would leave them at work unseen."""
    while os.getppid() == runner:
        time.sleep(1.0)
    os._exit(143)


def main(folder: str, start: str, trainings: str, batch_size: str, jobs: str) -> int:
    """Run one cell; what goes wrong is left in `failed.json`."""
    began = time.perf_counter()
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    try:
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
