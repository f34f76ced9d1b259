"""The run folder during training: the log, the costs, artefacts that appear whole, and user errors for files that cannot be written."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from frugalign.base.files import announce, write_atomic, writing
from frugalign.base.json_files import append_lines, read_lines
from frugalign.base.ledger import Ledger
from frugalign.base.parsing import dump_yaml
from frugalign.runs.layout import (
    COMPLETIONS_FILE,
    CONFIG_FILE,
    COSTS_FILE,
    FINISHED_MARKS,
    LOG_FILE,
    STAGING_FOLDER,
    read_log,
)
from frugalign.runs.lock import check_not_deleted

_TIMED = re.compile(r".*(_runtime|_per_second)")
_SUMMARY = "train_loss"
"""Trainer's summary of a training, which a resumed run cannot repeat."""


class RunFolder(TrainerCallback):
    """Writes the resolved options `config`, every log line, and the ledger.

    A resumed run drops what was written after its checkpoint. A line holds nothing that depends on the clock, so a resumed run
    writes the lines of an uninterrupted one. Seconds are in the ledger.
    """

    def __init__(self, ledger: Ledger, config: dict[str, Any]) -> None:
        self.ledger, self.config = ledger, config

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if not state.is_world_process_zero:
            return
        folder = open_run_folder(str(args.output_dir))
        with writing(folder):
            shutil.rmtree(folder / STAGING_FOLDER, ignore_errors=True)
        write_atomic(folder / CONFIG_FILE, dump_yaml(self.config))
        keep_lines(folder, state.global_step)
        self.ledger.save(folder / COSTS_FILE)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if not state.is_world_process_zero or logs is None or _SUMMARY in logs:
            return
        folder = Path(str(args.output_dir))
        check_not_deleted(folder)
        kept = {name: value for name, value in logs.items() if not _TIMED.fullmatch(name)}
        line = {"step": state.global_step, "epoch": state.epoch} | kept
        append_lines(folder / LOG_FILE, [json.dumps(line)])
        self.ledger.save(folder / COSTS_FILE)


def keep_lines(folder: Path, step: int) -> None:
    """Keep the lines of the log and of the sample completions that were written before the checkpoint at `step`; 0 keeps none.

    The checkpoint is saved after its step is logged, and before the rollout that starts at its step.
    """
    log = [line for line in read_log(folder) if step and line["step"] <= step]
    write_atomic(folder / LOG_FILE, "".join(json.dumps(line) + "\n" for line in log))
    completions = folder / COMPLETIONS_FILE
    if completions.exists():
        kept = [line for line in read_lines(completions) if isinstance(line.get("step"), int) and line["step"] < step]
        write_atomic(completions, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in kept))


def open_run_folder(path: str | Path) -> Path:
    """The run folder, created if missing.

    Raises:
        FrugalignError: if it cannot be created.
    """
    folder = Path(path)
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    return folder


def publish(folder: Path, save: Callable[[Path], None]) -> None:
    """Let `save` write an artefact into a staging folder, then move its files into `folder`. The weights move last.

    So a folder with weights holds a whole artefact, also after a kill.

    Raises:
        FrugalignError: a full disk, a missing permission and the like.
    """
    staged = folder / STAGING_FOLDER
    with saving(folder):
        shutil.rmtree(staged, ignore_errors=True)
        staged.mkdir(parents=True)
        save(staged)
        check_not_deleted(folder)
        for mark in FINISHED_MARKS:
            (folder / mark).unlink(missing_ok=True)
        for path in sorted(staged.iterdir(), key=lambda path: (path.name in FINISHED_MARKS, path.name)):
            target = folder / path.name
            announce("move", target)
            if target.is_dir():
                shutil.rmtree(target)
            os.replace(path, target)
        announce("moved", folder)
        shutil.rmtree(staged)


@contextmanager
def saving(path: str | Path) -> Iterator[None]:
    """`writing`, for code that saves tensors.

    safetensors gives the system's error code in its message only, and torch does not give it at all.

    Raises:
        FrugalignError: a full disk, a missing permission and the like.
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
            if re.search(r"[Pp]arent directory .* does not exist", str(error)):
                raise OSError(errno.ENOENT, os.strerror(errno.ENOENT)) from error
            raise
