"""The run folder during training: the log, the costs, and user errors for files that cannot be written."""

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

from frugalign.base.files import write_atomic, writing
from frugalign.base.ledger import Ledger
from frugalign.base.parsing import dump_yaml
from frugalign.runs.layout import CONFIG_FILE, COSTS_FILE, LOG_FILE, STAGING_FOLDER, read_log


class RunFolder(TrainerCallback):
    """Writes the resolved options `config`, every log line, and the ledger. A resumed run drops log lines after its checkpoint."""

    def __init__(self, ledger: Ledger, config: dict[str, Any]) -> None:
        self.ledger, self.config = ledger, config

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if not state.is_world_process_zero:
            return
        folder = Path(str(args.output_dir))
        folder.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(folder / STAGING_FOLDER, ignore_errors=True)
        lines = [line for line in read_log(folder) if state.global_step > 0 and line["step"] <= state.global_step]
        write_atomic(folder / CONFIG_FILE, dump_yaml(self.config))
        write_atomic(folder / LOG_FILE, "".join(json.dumps(line) + "\n" for line in lines))
        self.ledger.save(folder / COSTS_FILE)

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
        with (folder / LOG_FILE).open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        self.ledger.save(folder / COSTS_FILE)


def open_run_folder(path: str | Path) -> Path:
    """The run folder, created if missing.

    Raises:
        FrugalignError: if it cannot be created.
    """
    folder = Path(path)
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    return folder


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
            raise
