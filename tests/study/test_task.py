"""What a cell may train on: nothing that it is tested on or that settings are chosen by."""

import json
from pathlib import Path
from typing import Any

import pytest

from frugalign.base.errors import FrugalignError
from frugalign.methods.budget import Budget
from frugalign.study.task import Task, prompt_splits


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def request_of(tmp_path: Path, **given: Any) -> dict[str, Any]:
    return {"dataset_name": str(tmp_path / "prompts"), "eval_split": "test"} | given


def prompts(tmp_path: Path, **splits: list[str]) -> None:
    for name, texts in splits.items():
        write(tmp_path / "prompts" / f"{name}.jsonl", [{"prompt": text} for text in texts])


def test_training_prompts_that_are_tested_on_are_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    prompts(tmp_path, train=["a", "b", "c", "d"], validation=["c"], test=["b", "x"])
    assert prompt_splits(request_of(tmp_path))["train"]["prompt"] == ["a", "c", "d"]
    assert "1 training prompts" in caplog.text
    assert prompt_splits(request_of(tmp_path, holds_out=True))["train"]["prompt"] == ["a", "d"]


def test_a_tenth_is_held_out_where_nothing_else_is_there_to_choose_by(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    prompts(tmp_path, train=[f"p{n}" for n in range(20)], test=["x"])
    found = prompt_splits(request_of(tmp_path, holds_out=True))
    assert len(found["validation"]) == 2 and len(found["train"]) == 18 and not caplog.text
    assert not set(found["train"]["prompt"]) & set(found["validation"]["prompt"])


def test_nothing_left_to_train_on_is_a_mistake(tmp_path: Path) -> None:
    prompts(tmp_path, train=["a"], test=["a"])
    with pytest.raises(FrugalignError, match="Every training prompt"):
        prompt_splits(request_of(tmp_path))


def test_pairs_of_such_prompts_are_left_out_however_they_are_written(tmp_path: Path) -> None:
    """As a string, as a message with its keys in any order, or inside both answers."""
    prompts(tmp_path, train=["a"], validation=["held out"], test=["tested"])

    def said(role: str, content: str) -> dict[str, str]:
        return {"content": content, "role": role}

    def kept(rows: list[dict[str, Any]], cell: str) -> int:
        write(tmp_path / f"{cell}.jsonl", rows)
        (tmp_path / cell).mkdir()
        request = request_of(tmp_path, preferences=str(tmp_path / f"{cell}.jsonl"), holds_out=True)
        folder = Task(request, tmp_path / cell, Budget()).preferences
        assert folder is not None
        return len((Path(folder) / "train.jsonl").read_text().splitlines())

    answers = {"chosen": [said("assistant", "yes")], "rejected": [said("assistant", "no")]}
    rows = [{"prompt": [said("user", text)]} | answers for text in ("a", "held out", "tested")]
    assert kept(rows, "messages") == 1
    assert kept([{"prompt": t, "chosen": "yes", "rejected": "no"} for t in ("a", "held out", "tested")], "strings") == 1
    implicit = [
        {name: [said("user", text), *answer] for name, answer in answers.items()}
        for text in ("a", "held out", "tested")
    ]
    assert kept(implicit, "implicit") == 1
