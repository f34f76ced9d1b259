"""The run folder: `metrics.jsonl`, `costs.json`, and checkpoints that exist whole or not at all."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import rotate_checkpoints

from frugalign.artifacts import write_atomic, write_json_atomic, writing
from frugalign.errors import FrugalignError
from frugalign.ledger import Ledger

STAGING = ".saving"
STATE_FILE = "frugalign.json"
METRICS_FILE = "metrics.jsonl"
COSTS_FILE = "costs.json"


class RunFolder(TrainerCallback):
    """Writes every log line to `metrics.jsonl` and the ledger to `costs.json`; a resumed run forgets lines after its checkpoint."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if not state.is_world_process_zero:
            return
        folder = Path(str(args.output_dir))
        folder.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(folder / STAGING, ignore_errors=True)
        lines = [line for line in read_metrics(folder) if state.global_step > 0 and line["step"] <= state.global_step]
        write_atomic(folder / METRICS_FILE, "".join(json.dumps(line) + "\n" for line in lines))

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if not state.is_world_process_zero or logs is None:
            return
        folder = Path(str(args.output_dir))
        line = {"step": state.global_step, "epoch": state.epoch} | logs
        with (folder / METRICS_FILE).open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        self.ledger.save(folder / COSTS_FILE)


def open_run_folder(path: str | Path) -> Path:
    """The run folder, made where it does not exist.

    Raises:
        FrugalignError: where the system does not allow it, or a file stands in its place.
    """
    folder = Path(path)
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    return folder


@contextmanager
def saving(path: str | Path) -> Iterator[None]:
    """`writing`, for code that saves tensors: what the system refused, safetensors says in its message alone, and torch not at all.

    Raises:
        FrugalignError: for a full disk, a missing permission and the like.
    """
    with writing(path):
        try:
            yield
        except (SafetensorError, RuntimeError) as error:
            code = re.search(r"os error (\d+)", str(error))
            if isinstance(error, SafetensorError) and code:
                raise OSError(int(code[1]), os.strerror(int(code[1]))) from error
            if "inline_container" in str(error) or "PytorchStreamWriter" in str(error):
                raise OSError(errno.EIO, "a file could not be written whole; is the disk full?") from error
            raise


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The whole lines of `metrics.jsonl`; one that a crash cut short is left out."""
    path = folder / METRICS_FILE
    if not path.is_file():
        return []
    lines = []
    for text in path.read_text(encoding="utf-8").splitlines():
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            continue
    return lines


def publish_checkpoint(run_dir: Path, step: int, state: dict[str, Any], keep: int | None) -> None:
    """Complete the checkpoint staged under `run_dir/.saving` and move it into place in one step, then drop the oldest ones."""
    staged = run_dir / STAGING / f"checkpoint-{step}"
    write_json_atomic(staged / STATE_FILE, state)
    target = run_dir / f"checkpoint-{step}"
    if target.exists():
        shutil.rmtree(target)
    os.replace(staged, target)
    shutil.rmtree(run_dir / STAGING, ignore_errors=True)
    rotate_checkpoints(output_dir=str(run_dir), save_total_limit=keep, use_mtime=False)


def checkpoint_state(checkpoint: Path) -> dict[str, Any]:
    """What `publish_checkpoint` stored beside the weights."""
    path = checkpoint / STATE_FILE
    if not path.is_file():
        raise FrugalignError(f"{checkpoint} is not a checkpoint of this trainer: it holds no {STATE_FILE}.")
    state: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return state


def find_checkpoint(output_dir: str, wanted: str | bool | None) -> str | None:
    """The checkpoint folder to resume from: a path as given, or for `true` the newest one in the run folder.

    Raises:
        FrugalignError: where there is none.
    """
    if wanted is None or wanted is False or str(wanted).lower() in ("", "false", "none"):
        return None
    if wanted is True or str(wanted).lower() in ("true", "latest", "1"):
        found = [
            (int(match.group(1)), path)
            for path in Path(output_dir).glob("checkpoint-*")
            if (match := re.fullmatch(r"checkpoint-(\d+)", path.name)) and (path / STATE_FILE).is_file()
        ]
        if not found:
            raise FrugalignError(f"There is no checkpoint in {output_dir} to resume from.")
        return str(max(found)[1])
    if not Path(str(wanted)).is_dir():
        raise FrugalignError(f"There is no checkpoint folder {wanted}.")
    checkpoint_state(Path(str(wanted)))
    return str(wanted)
