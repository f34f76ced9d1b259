"""Checkpoints exist whole or not at all; none is written over, and none is resumed under other settings."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from tests.runs.damages import DAMAGES
from transformers import TrainerControl, TrainerState, TrainingArguments

from frugalign.base.errors import FrugalignError
from frugalign.base.ledger import Ledger
from frugalign.runs.checkpoints import (
    WholeCheckpoints,
    check_settings,
    check_whole,
    checkpoint_state,
    checkpoint_to_resume,
    clear_earlier_run,
    find_checkpoint,
    publish_checkpoint,
    refuse_earlier_run,
)
from frugalign.runs.folder import RunFolder
from frugalign.runs.layout import CHECKPOINT_STATE_FILE, STAGING_FOLDER


def stage(folder: Path, step: int) -> None:
    staged = folder / STAGING_FOLDER / f"checkpoint-{step}"
    staged.mkdir(parents=True)
    (staged / "model.safetensors").write_bytes(b"weights %d" % step)


def begin(folder: Path, step: int) -> tuple[RunFolder, TrainingArguments, TrainerState, TrainerControl]:
    callback, state = RunFolder(Ledger(), {}), TrainerState(global_step=step, epoch=0.5)
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
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["checkpoint-4", "config.yaml", "costs.json", "metrics.jsonl"]


def test_the_newest_complete_checkpoint_is_found(tmp_path: Path) -> None:
    """By number, not by name; a folder without our state, or of another name, is none of ours."""
    for name in ("checkpoint-9", "checkpoint-10", "checkpoint-best"):
        (tmp_path / name).mkdir()
        (tmp_path / name / CHECKPOINT_STATE_FILE).write_text("{}")
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


def test_an_earlier_run_is_neither_written_over_nor_mixed_with(tmp_path: Path) -> None:
    """Refused by name of what is there; deleted when asked, with its metrics, and what is not ours stays."""
    refuse_earlier_run(tmp_path, overwrite=False)
    stage(tmp_path, 4)
    publish_checkpoint(tmp_path, 4, {}, keep=None)
    for name in ("metrics.jsonl", "notes.txt"):
        (tmp_path / name).write_text("")
    with pytest.raises(FrugalignError, match=r"holds an earlier run \(checkpoint-4\)"):
        refuse_earlier_run(tmp_path, overwrite=False)
    refuse_earlier_run(tmp_path, overwrite=True)
    clear_earlier_run(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
    (tmp_path / "model.safetensors").write_text("")
    with pytest.raises(FrugalignError, match=r"\(model.safetensors\)"):
        refuse_earlier_run(tmp_path, overwrite=False)


def test_other_settings_are_named() -> None:
    check_settings("checkpoint-4", {"beta": 0.1, "old": 1}, {"beta": 0.1, "new": 2})
    with pytest.raises(FrugalignError, match=r"checkpoint-4 was made with beta 0\.1, not 0\.5; seed 0, not 1: resume"):
        check_settings("checkpoint-4", {"beta": 0.1, "seed": 0}, {"beta": 0.5, "seed": 1})


@pytest.mark.parametrize("lacking", ["last_kl", "beta"])
def test_a_checkpoint_of_another_version_is_said(lacking: str, tmp_path: Path) -> None:
    class Loading:
        def _load_from_checkpoint(self, checkpoint: str, model: Any) -> None:
            """Trainer's part, the weights."""

    class Resumed(WholeCheckpoints, Loading):
        ledger = Ledger()

        def run_settings(self) -> dict[str, Any]:
            return {}

        def run_state(self) -> dict[str, Any]:
            return {}

        def load_run_state(self, state: dict[str, Any]) -> None:
            self.found = state["beta"], state["last_kl"]

        def reset_run_state(self) -> None:
            pass

    state = {"ledger": Ledger().to_dict(), "loss": {}, "beta": 0.1, "last_kl": 2.0}
    (tmp_path / "frugalign.json").write_text(json.dumps({name: state[name] for name in state if name != lacking}))
    with pytest.raises(FrugalignError, match=f"saved by another version of frugalign, without its {lacking}: train it"):
        Resumed()._load_from_checkpoint(str(tmp_path))


@pytest.mark.parametrize("name", ["model.safetensors", "frugalign.json", "hashes.json"])
def test_a_damaged_checkpoint_is_named_with_the_one_before(name: str, tmp_path: Path) -> None:
    """Three files in fifteen ways, and a file that changed without a sign of it."""
    for step in (4, 8):
        stage(tmp_path, step)
        publish_checkpoint(tmp_path, step, {"beta": float("nan"), "settings": {"seed": 0}}, keep=None)
    check_whole(tmp_path / "checkpoint-8")
    changed = {"changed": lambda path: path.write_bytes(path.read_bytes().replace(b"8", b"9").replace(b"0", b"1"))}
    whole = (tmp_path / "checkpoint-8" / name).read_bytes()
    for damage, act in (DAMAGES | changed).items():
        path = tmp_path / "checkpoint-8" / name
        if path.is_dir():
            path.rmdir()
        path.write_bytes(whole)
        act(path)
        if name == "hashes.json" and damage in ("NaN", "numbers as text", "huge numbers"):
            continue  # it holds no number
        with pytest.raises(FrugalignError) as raised:
            check_whole(tmp_path / "checkpoint-8")
        assert str(tmp_path / "checkpoint-8") in str(raised.value), damage
    with pytest.raises(FrugalignError, match=r"Start again \(overwrite_output_dir\)"):
        shutil.rmtree(tmp_path / "checkpoint-4")
        (tmp_path / "checkpoint-8" / "model.safetensors").unlink(missing_ok=True)
        check_whole(tmp_path / "checkpoint-8")


def test_the_same_command_resumes_an_unfinished_run_only(tmp_path: Path) -> None:
    folder = str(tmp_path)
    assert checkpoint_to_resume(folder, None, False) is None
    for step in (4, 12):
        stage(tmp_path, step)
        publish_checkpoint(tmp_path, step, {}, keep=None)
    newest = str(tmp_path / "checkpoint-12")
    assert checkpoint_to_resume(folder, None, False) == checkpoint_to_resume(folder, "true", False) == newest
    assert checkpoint_to_resume(folder, None, True) is None
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(FrugalignError, match="holds an earlier run"):
        checkpoint_to_resume(folder, None, False)
    assert checkpoint_to_resume(folder, "true", False) == newest


def test_a_checkpoint_leaves_its_place_in_one_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped while the old checkpoint is being deleted: no part of it is left where one looks for checkpoints."""
    stage(tmp_path, 4)
    publish_checkpoint(tmp_path, 4, {}, keep=1)
    stage(tmp_path, 8)

    def stop(path: Any, **_: Any) -> None:
        if Path(path).name == "old-checkpoint-4" and Path(path).exists():
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(shutil, "rmtree", stop)
        publish_checkpoint(tmp_path, 8, {}, keep=1)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".frugalign-saving", "checkpoint-8"]


@pytest.mark.parametrize(
    "names",
    [
        ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "model.safetensors.index.json"],
        ["model-00001-of-00002.safetensors"],
        [
            "model.safetensors",
            "frugalign_model.json",
            "generation_config.json",
            "tokenizer.json",
            "chat_template.jinja",
        ],
    ],
)
def test_a_large_model_s_files_are_an_earlier_run_and_deleted_with_it(names: list[str], tmp_path: Path) -> None:
    """And nothing that only looks alike."""
    others = ["model-notes.txt", "model-1-of-2.safetensors", "notes.safetensors"]
    for name in names + others:
        (tmp_path / name).write_text("")
    with pytest.raises(FrugalignError, match="holds an earlier run"):
        refuse_earlier_run(tmp_path, overwrite=False)
    clear_earlier_run(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(others)


REWARDS = {"learned": "1f", "polite": "2e"}


@pytest.mark.parametrize(
    ("stored", "now", "words"),
    [
        (REWARDS, REWARDS | {"polite": "3d"}, "another reward 'polite' (its code, settings or weights have changed)"),
        (REWARDS, {"learned": "1f"}, "rewards ['learned', 'polite'], not ['learned']"),
        (REWARDS, dict(reversed(REWARDS.items())), ""),
    ],
)
def test_another_reward_is_named(stored: dict[str, str], now: dict[str, str], words: str) -> None:
    if not words:
        check_settings("checkpoint-4", {"rewards": stored}, {"rewards": now})
        return
    with pytest.raises(FrugalignError) as error:
        check_settings("checkpoint-4", {"rewards": stored}, {"rewards": now})
    assert str(error.value).startswith(f"checkpoint-4 was made with {words}: resume with the same settings")


def test_what_differs_in_another_base_is_named() -> None:
    base = {"architecture": "LlamaForCausalLM", "width": 8, "vocabulary": 9, "weights": "w", "layers": "l"}
    base |= {"config": {"rms_norm_eps": "1e-06"}, "tokenizer": {"chat template": "c"}, "exact": "float32:e"}
    other = base | {"config": {"rms_norm_eps": "0.1"}, "tokenizer": {"chat template": "d"}}
    with pytest.raises(FrugalignError) as error:
        check_settings("checkpoint-4", {"base": base}, {"base": other})
    words = "another base (it differs in config rms_norm_eps (1e-06 there, 0.1 here); chat template)"
    assert str(error.value).startswith(f"checkpoint-4 was made with {words}: ")
    check_settings("checkpoint-4", {"base": base}, {"base": base | {"exact": None}})
