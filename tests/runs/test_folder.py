"""The run folder: metrics of a resumed run, and what cannot be written."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from transformers import TrainerControl, TrainerState, TrainingArguments

from frugalign.base.errors import FrugalignError
from frugalign.base.ledger import Ledger
from frugalign.runs.folder import RunFolder, keep_lines, open_run_folder, publish
from frugalign.runs.layout import is_finished, read_log


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


def test_lines_hold_nothing_of_the_clock(tmp_path: Path) -> None:
    callback, args, state, control = begin(tmp_path, 0)
    state.global_step = 2
    timed = {"eval_runtime": 1.0, "eval_samples_per_second": 2.0, "eval_steps_per_second": 3.0}
    callback.on_log(args, state, control, logs={"eval_loss": 0.5} | timed)
    callback.on_log(args, state, control, logs={"train_runtime": 9.0, "train_loss": 0.5})
    assert read_log(tmp_path) == [{"step": 2, "epoch": 0.5, "eval_loss": 0.5}]


def test_completions_of_the_rollout_after_the_checkpoint_are_dropped(tmp_path: Path) -> None:
    """A rollout at step 4 comes after checkpoint-4; what stays is byte for byte as it was."""
    kept = ['{"step": 0, "completion": "é\u2028"}', '{"step": 2, "reward": 0.1}']
    (tmp_path / "completions.jsonl").write_text("\n".join([*kept, '{"step": 4}', '{"step": 6, "com']))
    keep_lines(tmp_path, 4)
    assert (tmp_path / "completions.jsonl").read_text() == "\n".join(kept) + "\n"
    keep_lines(tmp_path, 0)
    assert (tmp_path / "completions.jsonl").read_text() == ""


def test_an_artefact_appears_whole_with_its_weights_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped before every change of a file: a folder with weights has every file of the same save."""

    def save(value: str) -> Callable[[Path], None]:
        def write(folder: Path) -> None:
            for name in ("config.json", "model.safetensors", "tokenizer.json"):
                (folder / name).write_text(value)

        return write

    class Stopped(BaseException):
        pass

    for number in range(6):
        folder = tmp_path / str(number)
        publish(open_run_folder(folder), save("old"))
        calls: list[str] = []

        def stop(_: str, path: Path, calls: list[str] = calls, number: int = number) -> None:
            calls.append(path.name)
            if len(calls) > number:
                raise Stopped

        with monkeypatch.context() as patch:
            patch.setattr("frugalign.base.files.on_change", stop)
            with suppress(Stopped):
                publish(folder, save("new"))
        if is_finished(folder):
            assert {path.read_text() for path in folder.glob("*.*") if path.is_file()} == {"new"}
        publish(folder, save("new"))
        assert is_finished(folder) and not (folder / ".frugalign-saving").exists()
