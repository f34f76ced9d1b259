"""Many pairs and answers, encoded a part at a time: equal to few, each row named where it is broken."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from datasets.table import InMemoryTable
from tests.two_layers import two_layers

from frugalign.base.errors import FrugalignError
from frugalign.data import on_disk, row_parts, stored_lists, templating
from frugalign.data.stored_lists import StoredLists, lists_of
from frugalign.data.templating import Rendering
from frugalign.engines import encode
from frugalign.engines.encode import encode_for_model, pairs_table, tokenize_pairs
from frugalign.engines.loading import LoadedModel, load_model

N, PART = 230, 50
RAW = Rendering("raw")


@pytest.fixture(scope="module")
def base() -> LoadedModel:
    return load_model(two_layers())


def few(monkeypatch: pytest.MonkeyPatch) -> None:
    parts(monkeypatch, N)


def parts(monkeypatch: pytest.MonkeyPatch, rows: int) -> None:
    for module in (encode, on_disk, row_parts, stored_lists, templating):
        monkeypatch.setattr(module, "ROWS", rows)


@pytest.fixture(autouse=True)
def many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(on_disk, "LARGE", 1_000)
    parts(monkeypatch, PART)


def pairs(n: int = N) -> Dataset:
    rows = (
        {"prompt": f"Question {i}?", "chosen": f" Yes. {'x ' * (i % 9)}", "rejected": f" No {i}."} for i in range(n)
    )
    return Dataset.from_list(list(rows))


def test_many_pairs_are_encoded_as_few(
    base: LoadedModel, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    how: dict[str, Any] = {"max_length": 6, "rendering": RAW}
    large = tokenize_pairs(pairs(), base.model, base.tokenizer, **how)
    said = [message for message in caplog.messages if message.startswith("Cut ")]
    few(monkeypatch)
    caplog.clear()
    small = tokenize_pairs(pairs(), base.model, base.tokenizer, **how)
    assert all(isinstance(each, StoredLists) for each in large.values())
    assert {name: list(each) for name, each in large.items()} == small
    assert said == [message for message in caplog.messages if message.startswith("Cut ")] != []


def test_pairs_on_the_disk_are_encoded_once(
    base: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pairs().save_to_disk(tmp_path / "saved")
    stored = Dataset.load_from_disk(str(tmp_path / "saved"))
    first = pairs_table(stored, base.model, base.tokenizer, max_length=14, rendering=RAW)
    said = caplog.messages
    with monkeypatch.context() as patch:
        patch.setattr(encode, "encode_completions", None)
        caplog.clear()
        again = pairs_table(stored, base.model, base.tokenizer, max_length=14, rendering=RAW)
        assert again.equals(first) and caplog.messages == said
        with pytest.raises(TypeError):  # another limit is other ids
            pairs_table(stored, base.model, base.tokenizer, max_length=13, rendering=RAW)


def test_columns_of_stored_pairs(base: LoadedModel) -> None:
    table = pairs_table(pairs(), base.model, base.tokenizer, rendering=RAW)
    data = Dataset(InMemoryTable(table))
    assert list(lists_of(data, "chosen_ids")) == data["chosen_ids"][:]
    assert list(lists_of(data.select([3, 1]), "chosen_ids")) == data.select([3, 1])["chosen_ids"][:]


def test_many_answers_are_encoded_as_few(base: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    data = pairs()
    given = [[5, 6, 7]] * N
    for ids in (None, given):
        parts(monkeypatch, PART)
        large = encode_for_model(
            base.model, base.tokenizer, data["prompt"], data["chosen"], completion_ids=ids, max_length=14, rendering=RAW
        )
        few(monkeypatch)
        small = encode_for_model(
            base.model, base.tokenizer, data["prompt"], data["chosen"], completion_ids=ids, max_length=14, rendering=RAW
        )
        assert list(large.prompt_ids) == small.prompt_ids and list(large.completion_ids) == small.completion_ids
        assert large.n_cut == small.n_cut and list(large.completion_masks) == small.completion_masks


def test_turns_of_others_in_one_part_only(monkeypatch: pytest.MonkeyPatch) -> None:
    base = load_model("frugalign.sandbox:model")
    if not base.tokenizer.chat_template:
        pytest.skip("the sandbox's model has no chat template")
    answers: list[Any] = [[{"role": "assistant", "content": f"Yes {i}."}] for i in range(N)]
    answers[120] = [
        {"role": "assistant", "content": "A balm."},
        {"role": "user", "content": "A poison?"},
        {"role": "assistant", "content": "No."},
    ]
    prompts = [[{"role": "user", "content": "A draught?"}]] * N
    large = encode_for_model(base.model, base.tokenizer, prompts, answers)
    few(monkeypatch)
    small = encode_for_model(base.model, base.tokenizer, prompts, answers)
    assert large.has_other_turns and small.has_other_turns
    assert list(large.completion_masks) == small.completion_masks and 0 in small.completion_masks[120]


def test_a_broken_answer_among_many_is_named(base: LoadedModel) -> None:
    data = pairs()
    ids = [[5]] * N
    ids[170] = []
    with pytest.raises(FrugalignError, match=r"^Answer 171 has no tokens"):
        encode_for_model(base.model, base.tokenizer, data["prompt"], data["chosen"], completion_ids=ids, rendering=RAW)
