"""Files, folders and names as data sets; splits, and how data are recognised."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

from frugalign.base.errors import FrugalignError
from frugalign.base.progress import Part, set_display
from frugalign.data import dataset_fingerprint, held_out_split, load_prompts, load_splits, training_prompts
from frugalign.data.splits import rows_fingerprint, training_data_record


def write_jsonl(path: Path, rows: list[Any]) -> Path:
    text = "".join(json.dumps(row) + "\n" for row in rows)
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(text, encoding="utf-8")
    return path


ROWS = [{"prompt": f"question {i}", "label": "safe", "n": i} for i in range(20)]


@pytest.mark.parametrize("name", ["d.jsonl", "d.jsonl.gz", "d.json"])
def test_json_files(tmp_path: Path, name: str) -> None:
    data = load_splits(str(write_jsonl(tmp_path / name, ROWS)))
    assert list(data) == ["train"]
    assert data["train"].to_list() == ROWS


def test_a_json_array_is_a_data_set(tmp_path: Path) -> None:
    (tmp_path / "d.json").write_text(json.dumps(ROWS))
    assert load_prompts(str(tmp_path / "d.json")).to_list() == ROWS


@pytest.mark.parametrize("name", ["d.csv", "d.csv.gz", "d.parquet"])
def test_tables(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if name == "d.parquet":
        Dataset.from_list(ROWS).to_parquet(path)
    else:
        Dataset.from_list(ROWS).to_csv(tmp_path / "plain.csv")
        content = (tmp_path / "plain.csv").read_bytes()
        path.write_bytes(gzip.compress(content) if name.endswith("gz") else content)
    assert load_prompts(str(path)).to_list() == ROWS


def test_messages_and_columns_that_only_later_rows_have(tmp_path: Path) -> None:
    messages = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hello"}]
    rows = [{"prompt": messages}, {"prompt": messages[1:], "label": "safe"}]
    data = load_prompts(str(write_jsonl(tmp_path / "d.jsonl", rows)))
    assert data["prompt"][0] == messages
    assert data["label"][:] == [None, "safe"]


def test_a_folder_has_its_files_as_splits(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "train-0.jsonl", ROWS[:5])
    write_jsonl(tmp_path / "train-1.jsonl", ROWS[5:9])
    write_jsonl(tmp_path / "test.jsonl.gz", ROWS[9:12])
    write_jsonl(tmp_path / "validation.jsonl", ROWS[12:])
    splits = load_splits(str(tmp_path))
    assert {name: len(data) for name, data in splits.items()} == {"train": 9, "test": 3, "validation": 8}
    assert load_prompts(str(tmp_path)).to_list() == ROWS[9:12]
    assert len(load_prompts(str(tmp_path), split="all")) == 20
    assert len(load_prompts(str(tmp_path), split="train")) == 9


def test_a_saved_data_set_is_read_back(tmp_path: Path) -> None:
    Dataset.from_list(ROWS).save_to_disk(tmp_path / "saved")
    assert load_prompts(str(tmp_path / "saved")).to_list() == ROWS


def test_a_name_in_a_module_stands_for_its_folder() -> None:
    splits = load_splits("frugalign.sandbox:prompts")
    assert {"train", "test"} <= set(splits)
    assert load_prompts("frugalign.sandbox:prompts").to_list() == splits["test"].to_list()


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("missing.jsonl", "no data file or folder missing.jsonl"),
        ("./missing", "no data file or folder ./missing"),
        ("frugalign.sandbox:nonsense", "has no 'nonsense'"),
        ("no.such.module:prompts", "Cannot import 'no.such.module'"),
    ],
)
def test_what_is_not_there_is_one_sentence(name: str, sentence: str) -> None:
    with pytest.raises(FrugalignError, match=sentence):
        load_splits(name)


def test_an_empty_folder_and_an_unknown_split(tmp_path: Path) -> None:
    with pytest.raises(FrugalignError, match="holds no"):
        load_splits(str(tmp_path))
    path = write_jsonl(tmp_path / "d.jsonl", ROWS)
    with pytest.raises(FrugalignError, match=r"no split 'test'; it has train"):
        load_prompts(str(path), split="test")


def test_a_broken_row_stops_with_file_row_reason_and_how_many_more(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    path.write_text('{"prompt": "fine"}\n\n{"prompt": "cut off\n{"prompt": ""}\n{"prompt": "fine too"}\n[1]\n')
    with pytest.raises(FrugalignError) as caught:
        load_prompts(str(path))
    sentence = str(caught.value)
    assert f"{path}, row 3: the row is not valid JSON" in sentence
    assert "and 2 more problems (`frugalign validate" in sentence
    assert sentence.count("\n") == 0


def test_held_out_rows_keep_equal_prompts_together_whatever_the_order() -> None:
    rows = [{"prompt": f"p{i % 50}", "row": i} for i in range(100)]
    train, test = held_out_split(Dataset.from_list(rows), 0.1, seed=3)
    assert len(test) == 10 and len(train) == 90  # 5 of 50 prompts, each twice
    assert not set(train["prompt"]) & set(test["prompt"])
    shuffled = Dataset.from_list(rows).shuffle(seed=1)
    assert set(held_out_split(shuffled, 0.1, seed=3)[1]["prompt"]) == set(test["prompt"])
    assert set(held_out_split(shuffled, 0.1, seed=4)[1]["prompt"]) != set(test["prompt"])


def test_one_prompt_cannot_be_held_out() -> None:
    with pytest.raises(FrugalignError, match="fewer than two distinct prompts"):
        held_out_split(Dataset.from_list([{"prompt": "same"}] * 5))


def test_data_are_recognised_by_their_prompts(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "d.jsonl", ROWS)
    data = load_splits(str(path))["train"]
    assert dataset_fingerprint(data) == dataset_fingerprint(data.shuffle(seed=0).remove_columns("n"))
    assert dataset_fingerprint(data) != dataset_fingerprint(data.select(range(19)))
    trained_on = {"name": "x", "fingerprint": dataset_fingerprint(data), "held_out_fraction": 0.1, "seed": 0}
    train, held_out = held_out_split(data, 0.1, 0)
    assert load_prompts(str(path), trained_on=trained_on).to_list() == held_out.to_list()
    assert load_prompts(str(path), split="train", trained_on=trained_on).to_list() == train.to_list()
    assert len(load_prompts(str(path), split="all", trained_on=trained_on)) == 20
    other = trained_on | {"fingerprint": "another"}
    assert len(load_prompts(str(path), trained_on=other)) == 20
    # A data set with a test split of its own shows that one.
    whole = load_prompts("frugalign.sandbox:prompts", trained_on=trained_on)
    assert len(whole) == len(load_splits("frugalign.sandbox:prompts")["test"])


def write_prompts(path: Path, names: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_jsonl(path, [{"prompt": name} for name in names])


def named(kind: str, n: int) -> list[str]:
    return [f"{kind} {i}" for i in range(n)]


def test_a_single_file_holds_a_tenth_out(tmp_path: Path) -> None:
    """Of 20 prompts 18 are trained on and 2 held out, also where nobody watches; the artefact knows them again."""
    write_prompts(tmp_path / "data.jsonl", named("train", 20))
    train, watched, trained_on = training_prompts(str(tmp_path / "data.jsonl"), hold_out=True)
    assert (len(train), len(watched)) == (18, 2)
    assert not set(train["prompt"]) & set(watched["prompt"])
    assert trained_on["held_out_fraction"] == 0.1
    again, nobody, same = training_prompts(str(tmp_path / "data.jsonl"), hold_out=False)
    assert again["prompt"] == train["prompt"] and nobody is None and same == trained_on


def test_a_test_split_is_never_looked_at(tmp_path: Path) -> None:
    """With train and test all of train is trained on; watched, a tenth of *train* is taken, not the test prompts."""
    write_prompts(tmp_path / "data" / "train.jsonl", named("train", 20))
    write_prompts(tmp_path / "data" / "test.jsonl", named("test", 10))
    train, watched, trained_on = training_prompts(str(tmp_path / "data"), hold_out=False)
    assert (len(train), watched, trained_on["held_out_fraction"]) == (20, None, 0.0)
    train, watched, _ = training_prompts(str(tmp_path / "data"), hold_out=True)
    assert (len(train), len(watched)) == (18, 2)
    assert all(prompt.startswith("train") for prompt in [*train["prompt"], *watched["prompt"]])


def test_a_validation_split_is_watched(tmp_path: Path) -> None:
    for split, n in (("train", 20), ("validation", 3), ("test", 10)):
        write_prompts(tmp_path / "data" / f"{split}.jsonl", named(split, n))
    train, watched, _ = training_prompts(str(tmp_path / "data"), hold_out=True)
    assert len(train) == 20 and watched["prompt"] == named("validation", 3)


def test_what_was_trained_on_whole_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Not where a split is asked for, nor of other prompts."""
    write_prompts(tmp_path / "data.jsonl", named("train", 20))
    data = load_splits(str(tmp_path / "data.jsonl"))["train"]
    about = training_data_record("data", data, held_out_fraction=0.0)
    load_prompts(str(tmp_path / "data.jsonl"), trained_on=about, split="train")
    write_prompts(tmp_path / "other.jsonl", named("other", 20))
    load_prompts(str(tmp_path / "other.jsonl"), trained_on=about)
    assert not caplog.text
    assert len(load_prompts(str(tmp_path / "data.jsonl"), trained_on=about)) == 20
    assert "none of it was held out" in caplog.text


def test_rows_are_the_same_in_the_same_order_with_the_same_weights() -> None:
    rows = [{"prompt": "a", "weight": 1.0}, {"prompt": "b", "weight": 2.0}]
    mine = rows_fingerprint(Dataset.from_list(rows))
    labels = [
        rows_fingerprint(Dataset.from_list([row | {"label": label} for row in rows])) for label in ("a", "b", "a")
    ]
    assert labels[0] == labels[2] and len({mine, *labels}) == 3, "rewards read the other columns"
    assert rows_fingerprint(Dataset.from_list(rows[::-1])) != mine
    assert rows_fingerprint(Dataset.from_list([row | {"weight": 1.0} for row in rows])) != mine
    assert rows_fingerprint(Dataset.from_list([row | {"weight": int(row["weight"])} for row in rows])) == mine
    odd = [
        rows_fingerprint(Dataset.from_dict({"prompt": ["a"], "weight": [value]})) for value in (None, "heavy", [1.0])
    ]
    assert len({mine, *odd}) == 4, "a reward may read anything"


@pytest.mark.parametrize("form", ["jsonl", "csv", "parquet"])
def test_reading_a_large_file_is_a_part_in_progress(form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its bytes are what there is to do. A small file is read at once."""
    path = tmp_path / f"prompts.{form}"
    table = Dataset.from_dict({"prompt": [f"prompt {i}" for i in range(25_000)]})
    getattr(table, {"jsonl": "to_json"}.get(form, f"to_{form}"))(path)
    shares: list[float] = []

    class Seen:
        def opened(self, parts: list[Part]) -> None:
            assert parts[-1].title == f"reading prompts.{form}" and parts[-1].total == path.stat().st_size

        def moved(self, parts: list[Part]) -> None:
            shares.append(parts[-1].share)

        def closed(self, parts: list[Part], part: Part) -> None:
            assert not parts

    set_display(Seen())
    try:
        load_splits(str(path))
        assert shares == []
        monkeypatch.setattr("frugalign.data.rows._LARGE", 1000)
        load_splits(str(path))
    finally:
        set_display(None)
    assert len(shares) >= 2 and shares == sorted(shares) and 0 < shares[-1] <= 1
