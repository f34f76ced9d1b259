"""The run folder: metrics of a resumed run, and what cannot be written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import TrainerControl, TrainerState, TrainingArguments

from frugalign.base.errors import FrugalignError
from frugalign.base.ledger import Ledger
from frugalign.runs.folder import RunFolder, open_run_folder
from frugalign.runs.layout import read_log


def begin(folder: Path, step: int) -> tuple[RunFolder, TrainingArguments, TrainerState, TrainerControl]:
    callback, state = RunFolder(Ledger(), {}), TrainerState(global_step=step, epoch=0.5)
    args, control = TrainingArguments(output_dir=str(folder), use_cpu=True), TrainerControl()
    callback.on_train_begin(args, state, control)
    return callback, args, state, control


def test_a_resumed_run_forgets_the_lines_after_its_checkpoint(tmp_path: Path) -> None:
    """Lines of steps 2, 4, 6 and one cut short by a crash; resumed at 4: 2 and 4 stay. A fresh run starts with none."""
    text = "".join(json.dumps({"step": step, "reward": step / 2}) + "\n" for step in (2, 4, 6))
    (tmp_path / "metrics.jsonl").write_text(text + '{"step": 8, "rew')
    assert [line["step"] for line in read_log(tmp_path)] == [2, 4, 6]
    callback, args, state, control = begin(tmp_path, 4)
    assert [line["step"] for line in read_log(tmp_path)] == [2, 4]
    state.global_step = 6
    callback.on_log(args, state, control, logs={"reward": 9.0})
    assert read_log(tmp_path)[-1] == {"step": 6, "epoch": 0.5, "reward": 9.0}
    assert json.loads((tmp_path / "costs.json").read_text())["optimizer_steps"] == 0
    begin(tmp_path, 0)
    assert read_log(tmp_path) == []


def test_other_processes_write_nothing(tmp_path: Path) -> None:
    callback, state = RunFolder(Ledger(), {}), TrainerState(is_world_process_zero=False)
    args = TrainingArguments(output_dir=str(tmp_path), use_cpu=True)
    callback.on_train_begin(args, state, TrainerControl())
    callback.on_log(args, state, TrainerControl(), logs={"reward": 1.0})
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_said(tmp_path: Path) -> None:
    assert open_run_folder(tmp_path / "a" / "b").is_dir()
    (tmp_path / "file").write_text("")
    for place in ("file", "file/run"):
        with pytest.raises(FrugalignError, match="Cannot write"):
            open_run_folder(tmp_path / place)
