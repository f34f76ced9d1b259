"""The run folder: metrics of a resumed run, checkpoints that exist whole or not at all, and finding them."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from transformers import TrainerControl, TrainerState, TrainingArguments

from frugalign.errors import FrugalignError
from frugalign.ledger import Ledger
from frugalign.training.run_folder import (
    STAGING,
    STATE_FILE,
    RunFolder,
    checkpoint_state,
    find_checkpoint,
    open_run_folder,
    publish_checkpoint,
    read_metrics,
)


def stage(folder: Path, step: int) -> None:
    staged = folder / STAGING / f"checkpoint-{step}"
    staged.mkdir(parents=True)
    (staged / "model.safetensors").write_bytes(b"weights %d" % step)


def begin(folder: Path, step: int) -> tuple[RunFolder, TrainingArguments, TrainerState, TrainerControl]:
    callback, state = RunFolder(Ledger()), TrainerState(global_step=step, epoch=0.5)
    args, control = TrainingArguments(output_dir=str(folder), use_cpu=True), TrainerControl()
    callback.on_train_begin(args, state, control)
    return callback, args, state, control


def test_a_checkpoint_is_published_whole_and_the_oldest_leave(tmp_path: Path) -> None:
    """Three are published and two kept, in the order of their steps, not of their names; nothing staged is left."""
    for step in (8, 9, 10):
        stage(tmp_path, step)
        publish_checkpoint(tmp_path, step, {"beta": step / 10}, keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-10", "checkpoint-9"]
    assert checkpoint_state(tmp_path / "checkpoint-10") == {"beta": 1.0}
    assert (tmp_path / "checkpoint-10" / "model.safetensors").read_bytes() == b"weights 10"


def test_a_checkpoint_of_the_same_step_is_replaced(tmp_path: Path) -> None:
    for beta in (0.1, 0.2):
        stage(tmp_path, 4)
        publish_checkpoint(tmp_path, 4, {"beta": beta}, keep=None)
    assert checkpoint_state(tmp_path / "checkpoint-4") == {"beta": 0.2}


def test_a_crash_before_the_move_leaves_no_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The older one is what a resumed run finds; what was staged is swept away when it begins."""
    stage(tmp_path, 4)
    publish_checkpoint(tmp_path, 4, {"beta": 0.1}, keep=2)
    stage(tmp_path, 8)
    replace = os.replace

    def crash(source: Any, target: Any) -> None:
        if Path(target).name == "checkpoint-8":
            raise KeyboardInterrupt
        replace(source, target)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(os, "replace", crash)
        publish_checkpoint(tmp_path, 8, {"beta": 0.2}, keep=2)
    assert find_checkpoint(str(tmp_path), "true") == str(tmp_path / "checkpoint-4")
    begin(tmp_path, 4)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-4", "metrics.jsonl"]


def test_a_resumed_run_forgets_the_lines_after_its_checkpoint(tmp_path: Path) -> None:
    """Lines of steps 2, 4, 6 and one cut short by a crash; resumed at 4: 2 and 4 stay. A fresh run starts with none."""
    text = "".join(json.dumps({"step": step, "reward": step / 2}) + "\n" for step in (2, 4, 6))
    (tmp_path / "metrics.jsonl").write_text(text + '{"step": 8, "rew')
    assert [line["step"] for line in read_metrics(tmp_path)] == [2, 4, 6]
    callback, args, state, control = begin(tmp_path, 4)
    assert [line["step"] for line in read_metrics(tmp_path)] == [2, 4]
    state.global_step = 6
    callback.on_log(args, state, control, logs={"reward": 9.0})
    assert read_metrics(tmp_path)[-1] == {"step": 6, "epoch": 0.5, "reward": 9.0}
    assert json.loads((tmp_path / "costs.json").read_text())["optimizer_steps"] == 0
    begin(tmp_path, 0)
    assert read_metrics(tmp_path) == []


def test_other_processes_write_nothing(tmp_path: Path) -> None:
    callback, state = RunFolder(Ledger()), TrainerState(is_world_process_zero=False)
    args = TrainingArguments(output_dir=str(tmp_path), use_cpu=True)
    callback.on_train_begin(args, state, TrainerControl())
    callback.on_log(args, state, TrainerControl(), logs={"reward": 1.0})
    assert list(tmp_path.iterdir()) == []


def test_the_newest_complete_checkpoint_is_found(tmp_path: Path) -> None:
    """By number, not by name; a folder without our state, or of another name, is none of ours."""
    for name in ("checkpoint-9", "checkpoint-10", "checkpoint-best"):
        (tmp_path / name).mkdir()
        (tmp_path / name / STATE_FILE).write_text("{}")
    (tmp_path / "checkpoint-11").mkdir()
    for wanted in (True, "true", "True", "latest"):
        assert find_checkpoint(str(tmp_path), wanted) == str(tmp_path / "checkpoint-10")
    assert find_checkpoint(str(tmp_path), str(tmp_path / "checkpoint-9")) == str(tmp_path / "checkpoint-9")
    for unwanted in (None, False, "false", ""):
        assert find_checkpoint(str(tmp_path), unwanted) is None


def test_no_checkpoint_is_said(tmp_path: Path) -> None:
    with pytest.raises(FrugalignError, match="no checkpoint in"):
        find_checkpoint(str(tmp_path), True)
    with pytest.raises(FrugalignError, match="no checkpoint folder"):
        find_checkpoint(str(tmp_path), str(tmp_path / "absent"))
    with pytest.raises(FrugalignError, match="not a checkpoint of this trainer"):
        find_checkpoint(str(tmp_path), str(tmp_path))


def test_a_folder_that_cannot_be_made_is_said(tmp_path: Path) -> None:
    assert open_run_folder(tmp_path / "a" / "b").is_dir()
    (tmp_path / "file").write_text("")
    for place in ("file", "file/run"):
        with pytest.raises(FrugalignError, match="Cannot write"):
            open_run_folder(tmp_path / place)
