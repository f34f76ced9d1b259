"""Splits by name and by content."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from datasets import Dataset, DatasetDict

from frugalign.base.errors import FrugalignError
from frugalign.data import load_prompts, load_splits, training_prompts
from frugalign.data.pairs import preference_pairs
from frugalign.data.read_files import role_of
from frugalign.data.splits import content_key, count_shared, held_out_split, split_for, training_name


@pytest.mark.parametrize(
    "name", ["test", "test_prefs", "Test-sft", "testmini", "tests", "held_out", "holdout", "heldout_1"]
)
def test_a_test_split_by_any_suffix(name: str) -> None:
    assert role_of(name) == "test"


@pytest.mark.parametrize(
    "name", ["validation", "valid", "val_prefs", "validation_matched", "dev", "dev-clean", "eval_gen", "evaluation"]
)
def test_a_validation_split_by_any_suffix(name: str) -> None:
    assert role_of(name) == "validation"


def test_other_splits_by_name() -> None:
    names = ("train", "train_prefs", "training", "auxiliary_train", "default", "prompts", "2024")
    assert [role_of(name) for name in names] == [*["train"] * 4, *[None] * 3]


@pytest.mark.parametrize(
    "name", ["prompts_{}", "hh.{}", "my-{}-00000-of-00002", "A {} v2", "prompts{}", "x_{}_en", "hh_{}_3"]
)
@pytest.mark.parametrize("end", ["", ".jsonl", ".jsonl.gz", ".parquet"])
def test_the_role_may_stand_at_the_end_of_a_name(name: str, end: str) -> None:
    words = {"Train": "train", "Test": "test", "Val": "validation", "Valid": "validation", "Dev": "validation"}
    words |= {"Validation": "validation", "Eval": "validation"}
    assert {word: role_of(name.format(word) + end) for word in words} == words


def test_the_last_word_of_a_name_decides() -> None:
    assert [role_of(name) for name in ("test_cases_train", "train_eval", "eval-prompts-test", "held_out")] == [
        *("train", "validation", "test", "test")
    ]


def test_files_whose_names_end_with_their_split(tmp_path: Path) -> None:
    for name in ("prompts_train-00000-of-00002", "prompts_train-00001-of-00002", "prompts_test", "prompts-valid"):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({"prompt": name}) + "\n")
    assert {split: len(rows) for split, rows in load_splits(str(tmp_path)).items()} == {
        "train": 2,
        "test": 1,
        "validation": 1,
    }


def test_the_splits_that_belong_together() -> None:
    ultrafeedback = dict.fromkeys(("train_sft", "test_gen", "train_prefs", "test_sft", "test_prefs", "train_gen"))
    assert split_for(ultrafeedback, "train") == "train_prefs"
    assert split_for(ultrafeedback, "test", "train_prefs") == "test_prefs"
    assert split_for(ultrafeedback, "test", "train_sft") == "test_sft"
    assert split_for(ultrafeedback, "validation", "train_prefs") is None
    assert split_for({"default": 0, "test": 0}, "train") == "default"
    assert split_for({"train_en": 0, "train": 0}, "train") == "train"
    assert split_for({"test_prefs": 0, "dev": 0}, "train") is None
    assert split_for(dict.fromkeys(("a_test", "b_test")), "test", "b_train") == "b_test"


def test_what_is_not_trained_on_is_said(caplog: pytest.LogCaptureFixture) -> None:
    assert training_name({"train_prefs": 0, "train_sft": 0, "test_sft": 0}, "uf") == "train_prefs"
    assert caplog.messages == ["Training on the split train_prefs of uf, and not on train_sft."]
    with pytest.raises(FrugalignError, match="holds a test and validation split only"):
        training_name({"test_prefs": 0, "eval": 0}, "uf")


def rows(kind: str, start: int, stop: int) -> list[dict[str, str]]:
    return [
        {"prompt": f"question {i}", "chosen": f"{kind} good {i}", "rejected": f"{kind} bad {i}"}
        for i in range(start, stop)
    ]


def test_prompts_and_pairs_of_a_test_split_are_never_trained_on(tmp_path: Path) -> None:
    """Splits as UltraFeedback names them, stored by `datasets` and as files in the hub's layout."""
    parts = {"train_sft": rows("sft", 0, 4), "train_prefs": rows("prefs", 0, 30), "test_prefs": rows("prefs", 30, 40)}
    DatasetDict({name: Dataset.from_list(part) for name, part in parts.items()}).save_to_disk(tmp_path / "saved")
    (tmp_path / "files" / "data").mkdir(parents=True)
    for name, part in parts.items():
        Dataset.from_list(part).to_json(tmp_path / "files" / "data" / f"{name}-00000-of-00001.jsonl")
    for name in map(str, (tmp_path / "saved", tmp_path / "files")):
        assert set(load_splits(name)) == set(parts)
        train, held_out, about = preference_pairs(name, hold_out=True)
        assert held_out is not None and about["held_out_fraction"] == 0.0
        assert train["chosen"][:] == [f"prefs good {i}" for i in range(30)] and len(held_out) == 10
        train, nothing, _ = training_prompts(name, hold_out=False)
        assert nothing is None and train["prompt"][:] == [f"question {i}" for i in range(30)]
        assert load_prompts(name)["prompt"][:] == [f"question {i}" for i in range(30, 40)]
        assert len(load_prompts(name, split="train_sft")) == 4 and len(load_prompts(name, split="test")) == 10


def test_only_a_test_split_is_refused(tmp_path: Path) -> None:
    DatasetDict({"test_prefs": Dataset.from_list(rows("x", 0, 4))}).save_to_disk(tmp_path / "saved")
    for load in (training_prompts, preference_pairs):
        with pytest.raises(FrugalignError, match="holds a test split only"):
            load(str(tmp_path / "saved"), hold_out=False)


def test_contents_are_equal_whatever_the_form() -> None:
    same = ["Is  tea hot?", "is tea hot?\n", [{"role": "user", "content": "Is tea hot?"}], "Is tea ｈｏｔ?"]
    assert {content_key(prompt) for prompt in same} == {"is tea hot?"}
    system = {"role": "system", "content": "Be kind."}
    assert content_key([system, {"role": "user", "content": "Is tea hot?"}]) != "is tea hot?"
    assert content_key("Straße") == content_key("STRASSE")


def test_duplicates_go_to_one_side() -> None:
    prompts = [text for i in range(40) for text in (f"Question {i}", f"question  {i} ")]
    train, held_out = held_out_split(Dataset.from_dict({"prompt": prompts}), 0.25, 1)
    assert (len(train), len(held_out)) == (60, 20)
    assert count_shared(held_out["prompt"], train["prompt"]) == (0, 10)


def test_shared_prompts_are_counted_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for split, part in (("train", rows("a", 0, 20)), ("test", rows("b", 0, 6))):
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    said = f"6 of 6 test prompts of {tmp_path} are also trained on."
    _, _, about = training_prompts(str(tmp_path), hold_out=False)
    assert caplog.messages == [said]
    load_prompts(str(tmp_path), trained_on=about)
    assert caplog.messages == [said, said]
    preference_pairs(str(tmp_path))
    assert caplog.messages == [said, said, said]


def test_shared_validation_prompts_are_said_too(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for split, part in (("train", rows("a", 0, 20)), ("valid", rows("b", 18, 24)), ("test", rows("c", 30, 33))):
        (tmp_path / f"prompts-{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    said = f"2 of 6 validation prompts of {tmp_path} are also trained on."
    _, held_out, about = training_prompts(str(tmp_path), hold_out=True)
    assert held_out is not None and len(held_out) == 6 and caplog.messages == [said]
    load_prompts(str(tmp_path), trained_on=about)
    assert caplog.messages == [said]
    load_prompts(str(tmp_path), split="validation", trained_on=about)
    preference_pairs(str(tmp_path))
    assert caplog.messages == [said] * 3
