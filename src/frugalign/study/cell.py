"""Run one cell of a study in its own process: `python -m frugalign.study.cell FOLDER …` trains, evaluates, and writes `cell.json`.

The folder's `request.json` holds everything that the result depends on. A cell that fails leaves `failed.json`, with one sentence, instead of a
result. Trainings are stored apart from cells, by what they depend on. A cell that only tests the same training differently does not train again.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from frugalign.base.errors import FrugalignError
from frugalign.base.files import write_json_atomic
from frugalign.runs.layout import read_costs
from frugalign.runs.lock import in_use
from frugalign.study.layout import (
    FAILED_FILE,
    RESULT_FILE,
    TRACE_FILE,
    CellResult,
    TracePiece,
    Trained,
    evaluation_folder,
    read_request,
)
from frugalign.study.plan import IN_CONTEXT, hashes_of
from frugalign.study.training import budget_of, machine, trained

if TYPE_CHECKING:
    from frugalign.evaluation.settings import EvaluationSettings
    from frugalign.policies.policy import Policy

SHOWN = 3
"""Prompts whose answers the page shows."""
_DYING = 5.0
"""Seconds within which the cells of a killed runner end."""
_TEST_SEED = 1000
"""Added to a cell's seed. It keeps the test's noise apart from the training's, and equal for every method."""


def run_cell(folder: Path, start: Path, trainings: Path, *, batch_size: int = 64, jobs: int = 1) -> CellResult:
    """Train and evaluate what `request.json` describes, and write `cell.json`. A finished training is reused.

    Args:
        start: a folder beside the cells that stores measurements of the base.
        trainings: the folder of the trainings.
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
        found = trained(request, trainings, lambda: budget_of(request, start), jobs=jobs, warnings=warnings)
        result: CellResult = {
            "request": request,
            "metrics": _evaluated(request, found, evaluation_folder(folder), batch_size, start),
            "costs": found["costs"],
            "evaluation_costs": read_costs(evaluation_folder(folder)),
            "machine": machine(use_cpu=bool(request.get("use_cpu")), jobs=jobs),
            "training_machine": found.get("machine"),
            "warnings": list(dict.fromkeys([*found.get("warnings", []), *warnings])),
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


def _evaluated(request: dict[str, Any], found: Trained, folder: Path, batch_size: int, start: Path) -> dict[str, Any]:
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
    spec = PolicySpec.from_dict(found["policy"], **more, principles=request.get(IN_CONTEXT))
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
