"""Many rows: on the disk once, equal to the same rows in memory, and each named where it is broken."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from datasets import Dataset
from tests.two_layers import two_layers
from transformers import AutoTokenizer

from frugalign.base.errors import FrugalignError
from frugalign.base.files import umask
from frugalign.data import (
    load_files,
    load_splits,
    on_disk,
    read_json,
    read_tables,
    row_parts,
    splits,
    templating,
    validate_files,
)
from frugalign.data.load_files import columns_of
from frugalign.data.load_files import load_files as load
from frugalign.data.pairs import preference_pairs
from frugalign.data.row_parts import choose
from frugalign.data.splits import (
    content_key,
    count_shared,
    dataset_fingerprint,
    held_out_split,
    pairs_fingerprint,
    prompt_key,
    prompts_to_hold_out,
    rows_fingerprint,
)
from frugalign.data.stored_lists import InTurn, StoredLists, StoredMasks, Twice, array_of, lengths_of
from frugalign.data.templating import encode_prompts

N, PART, LARGE = 1_200, 100, 10_000
"""Rows; rows of a part; bytes that stay in memory."""


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An own cache, and rows that count as large sooner."""
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(on_disk, "LARGE", LARGE)
    for module in (on_disk, row_parts, splits, templating):
        monkeypatch.setattr(module, "ROWS", PART)
    for module in (read_json, read_tables):
        monkeypatch.setattr(module, "BATCH_ROWS", PART)
    return tmp_path / "cache" / "frugalign"


def rows(n: int = N) -> Iterator[dict[str, Any]]:
    for number in range(n):
        chosen, rejected = f"good {number}", f"bad {number}" if number % 100 else f"good {number}"
        row = {"prompt": f"Question {number % (n - 50)}?", "chosen": chosen, "rejected": rejected, "n": number}
        yield row | ({"weight": 2} if number > n // 2 else {})


def write(folder: Path, form: str = "jsonl", n: int = N, shards: int = 3) -> Path:
    folder.mkdir()
    every = list(rows(n))
    for shard in range(shards):
        part, path = every[shard::shards], folder / f"train-{shard:05d}-of-{shards:05d}.{form}"
        if form == "parquet":
            Dataset.from_list(part).to_parquet(path)
        else:
            path.write_text("".join(json.dumps(row) + "\n" for row in part), encoding="utf-8")
    return folder


def in_memory(monkeypatch: pytest.MonkeyPatch, folder: Path, kind: str = "prompt-only") -> Dataset:
    with monkeypatch.context() as patch:
        patch.setattr(on_disk, "LARGE", 1 << 30)
        found = load_splits(str(folder), kind=kind)["train"]
    assert not found.cache_files
    return found


@pytest.mark.parametrize("form", ["jsonl", "parquet"])
def test_rows_on_the_disk_are_those_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: Path, form: str
) -> None:
    folder = write(tmp_path / "data", form)
    small = in_memory(monkeypatch, folder)
    assert not cache.exists()
    large = load_splits(str(folder))["train"]
    assert large.cache_files and large.features == small.features and large[:] == small[:]
    assert rows_fingerprint(large) == rows_fingerprint(small)
    assert dataset_fingerprint(large) == dataset_fingerprint(small)
    for one, other in zip(held_out_split(large, 0.2, 7), held_out_split(small, 0.2, 7), strict=True):
        assert one["n"][:] == other["n"][:]


def test_a_second_start_reads_nothing_until_a_file_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write(tmp_path / "data")
    first = load_splits(str(folder))["train"]
    expected = rows_fingerprint(first), [len(part) for part in held_out_split(first)]
    with monkeypatch.context() as patch:
        patch.setattr(load_files._Reader, "read", None)
        patch.setattr("frugalign.data.splits.prompts_to_hold_out", None)
        patch.setattr("frugalign.data.splits._json_list", None)
        again = load_splits(str(folder))["train"]
        assert (rows_fingerprint(again), [len(part) for part in held_out_split(again)]) == expected
    path = folder / "train-00001-of-00003.jsonl"
    path.write_text(path.read_text().replace("Question 4?", "Question four?"))
    assert "Question four?" in load_splits(str(folder))["train"]["prompt"][:]


def test_validate_prepares_a_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    folder = write(tmp_path / "data")
    expected = in_memory(monkeypatch, folder, "preference")[:]
    assert validate_files(str(folder)).kinds == dict.fromkeys(map(str, sorted(folder.iterdir())), "preference")
    monkeypatch.setattr(load_files._Reader, "read", None)
    assert load_splits(str(folder), kind="preference")["train"][:] == expected
    assert {path.stat().st_mode & 0o777 for path in cache.glob("*.*")} == {0o666 & ~umask()}


def test_the_columns_of_a_second_start_are_those_of_the_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the first rows, as what is trained depends on them: not `weight`, which only later ones have."""
    path = tmp_path / "d.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows()))
    before = columns_of(str(path))
    load_splits(str(path), kind="preference")
    monkeypatch.setattr(read_json, "_lines", None)
    assert columns_of(str(path)) == before == {"prompt", "chosen", "rejected", "n"}


def test_a_partly_deleted_cache_is_made_again(tmp_path: Path, cache: Path) -> None:
    folder = write(tmp_path / "data")
    before = load_splits(str(folder))["train"][:]
    next(iter(cache.glob("*-00001.arrow"))).unlink()
    assert load_splits(str(folder))["train"][:] == before


def test_a_broken_row_of_a_late_shard_is_named_and_nothing_is_kept(tmp_path: Path, cache: Path) -> None:
    folder = write(tmp_path / "data")
    path = folder / "train-00002-of-00003.jsonl"
    lines = path.read_text().splitlines()
    lines[321], lines[330] = '{"prompt": ""}', '{"prompt": 3}'
    path.write_text("\n".join(lines))
    problems = [str(problem) for each in load(str(folder))["train"] for problem in each.problems]
    assert problems == [
        f"{path}, row 322: `prompt` is empty",
        f"{path}, row 331: `prompt` is a number, not text or a list of messages",
    ]
    assert not list(cache.glob("*.json")) and not list(cache.glob("*.arrow"))


def test_warnings_are_repeated_at_a_second_start(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "d.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"p {n}", "tools": "x" * 20}) + "\n" for n in range(N)))
    for _ in range(2):
        caplog.clear()
        load_splits(str(path))
        assert caplog.messages == [f"{path}: `tools` is not read."]


def test_text_becomes_messages_where_a_late_row_has_a_system_prompt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write(tmp_path / "data")
    (folder / "train-99999.jsonl").write_text(json.dumps({"prompt": "Hello", "system": "Be kind.", "n": 0}) + "\n")
    assert load_splits(str(folder))["train"][:] == in_memory(monkeypatch, folder)[:]


def test_pairs_on_the_disk_are_those_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write(tmp_path / "data")
    found = []
    for large in (LARGE, 1 << 30):
        monkeypatch.setattr(on_disk, "LARGE", large)
        monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / f"cache-{large}"))
        train, held_out, about = preference_pairs(str(folder), hold_out=True, weights=True)
        assert held_out is not None
        found.append((train[:], held_out[:], about, pairs_fingerprint(train)))
    assert found[0] == found[1]
    assert len(found[0][0]["prompt"]) + len(found[0][1]["prompt"]) == N - N // 100


# -- worked values -----------------------------------------------------------------------------------------------------

ODD = [
    *("Is tea hot?", "is  TEA hot?", "Is tea ｈｏｔ?", "b", "a", "ä", "Z", "\U0001f600", "ﬀ", "a"),
    [{"role": "user", "content": "a"}],
    [{"role": "system", "content": "s"}, {"role": "user", "content": "a"}],
]


def held_out_by_hand(prompts: list[Any], fraction: float, seed: int) -> list[bool]:
    written: dict[str, str] = {}
    for prompt in prompts:
        content, key = content_key(prompt), prompt_key(prompt)
        written[content] = min(key, written.get(content, key))
    ranked = sorted(written, key=lambda each: hashlib.sha256(f"{seed}:{written[each]}".encode()).digest())
    chosen = ranked[: min(len(ranked) - 1, max(1, round(fraction * len(ranked))))]
    return [content_key(prompt) in chosen for prompt in prompts]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("fraction", [0.1, 0.3, 0.9])
def test_the_rows_that_are_held_out(fraction: float, seed: int) -> None:
    assert prompts_to_hold_out(ODD, fraction, seed).tolist() == held_out_by_hand(ODD, fraction, seed)


def test_hashes_of_data_sets() -> None:
    texts = [prompt_key(prompt) for prompt in ODD]
    data = Dataset.from_dict({"prompt": texts, "weight": [1] * len(ODD), "note": [{"b": 1, "a": None}] * len(ODD)})
    digest = hashlib.sha256()
    for key in sorted(texts):
        digest.update(hashlib.sha256(key.encode()).digest())
    assert dataset_fingerprint(data) == digest.hexdigest()[:32]
    digest = hashlib.sha256(json.dumps(texts).encode())
    digest.update(json.dumps(["note", [{"a": None, "b": 1}] * len(ODD)]).encode())
    digest.update(json.dumps(["weight", [1.0] * len(ODD)]).encode())
    assert rows_fingerprint(data) == digest.hexdigest()[:32]
    pairs = Dataset.from_dict({"prompt": texts, "chosen": texts[::-1], "rejected": texts})
    said = json.dumps([["prompt", "chosen", "rejected"], texts, texts[::-1], texts])
    assert pairs_fingerprint(pairs) == hashlib.sha256(said.encode()).hexdigest()[:32]


def test_prompts_that_are_shared() -> None:
    assert count_shared(["A b", "c", "c", "d"], ["a  B", "d", "e"]) == (2, 3)
    assert count_shared([], ["a"]) == (0, 0) and count_shared(["a"], []) == (0, 1)


def test_rows_are_chosen_in_their_order() -> None:
    data = Dataset.from_dict({"n": list(range(10))})
    some = choose(data, np.array([7, 2, 2, 9]))
    assert some["n"][:] == [7, 2, 2, 9] and choose(some, np.array([3, 0]))["n"][:] == [9, 7]
    assert choose(some, np.array([], dtype=int))["n"][:] == [] and choose(some, np.arange(4)) is some
    assert choose(data.select(range(5, 10)), np.array([4, 0]))["n"][:] == [9, 5]
    assert choose(data, np.array([1]))._fingerprint == choose(data, np.array([1]))._fingerprint != some._fingerprint


def test_lists_that_are_read_as_they_are_asked_for() -> None:
    plain = [[1, 2], [], [3], [4, 5, 6]]
    chunks = [pa.array(plain[:1], pa.list_(pa.int64())), pa.array([[9], *plain[1:]], pa.list_(pa.int64()))[1:]]
    lists = StoredLists(pa.chunked_array([*chunks, pa.array([None], pa.list_(pa.int64()))]))
    assert list(lists) == [*plain, []] and lists[1:4] == plain[1:] and lists[-2] == [4, 5, 6]
    assert lengths_of(lists).tolist() == [2, 0, 1, 3, 0] == lengths_of([*plain, []]).tolist()
    assert array_of(lists, 3).tobytes() == array_of(plain, 3).tobytes()
    with pytest.raises(IndexError):
        lists[5]
    assert list(Twice(lists)) == [each for each in lists for _ in range(2)]
    both = InTurn(lists, [*plain, [8]])
    assert both[8:] == [[], [8]] and lengths_of(both).tolist() == [2, 2, 0, 0, 1, 1, 3, 3, 0, 1]
    masks = StoredMasks(StoredLists(pa.chunked_array([pa.array([[0, 1], None, [-1]], pa.list_(pa.int64()))])), lists)
    assert masks[0] == [0, 1] and masks[1] == []
    with pytest.raises(FrugalignError, match="Answer 3: the chat template does not show"):
        masks[2]


def test_nothing_is_kept_of_small_tables(cache: Path) -> None:
    made = []

    def make() -> Iterator[pa.Table]:
        made.append(1)
        yield pa.table({"x": [1, 2]})
        yield pa.table({"x": [3.5]})

    for _ in range(2):
        assert on_disk.kept_table("key", make).to_pydict() == {"x": [1.0, 2.0, 3.5]}
    assert made == [1, 1] and not cache.exists()


def test_a_full_disk_is_one_sentence(cache: Path) -> None:
    cache.parent.mkdir(parents=True)
    cache.write_text("a file in its place")
    with pytest.raises(FrugalignError, match="Cannot write"):
        on_disk.Spill().keep(pa.table({"x": ["x" * 200_000]}))


# -- token ids ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(two_layers())


def test_the_ids_of_many_prompts_are_those_of_few(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = [f"Question {number}? {'and ' * (number % 20)}" for number in range(N)]
    limits: dict[str, Any] = {"max_prompt_length": 12, "max_new_tokens": 3, "max_context": 40}
    large = encode_prompts(prompts, tokenizer, **limits)
    assert isinstance(large.ids, StoredLists)
    monkeypatch.setattr(templating, "ROWS", N)
    small = encode_prompts(prompts, tokenizer, **limits)
    assert isinstance(small.ids, list) and list(large.ids) == small.ids and large.n_cut == small.n_cut > 0


def test_ids_are_kept_and_their_cuts_are_said_again(
    tokenizer: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    prompts = ["long enough to be cut"] * N
    first = encode_prompts(prompts, tokenizer, max_prompt_length=2, max_new_tokens=1, key="kept")
    said = caplog.messages[-1]
    assert said == f"Cut {N} of {N} prompts on the left to max_prompt_length = 2 tokens."
    monkeypatch.setattr(templating, "token_ids", None)
    caplog.clear()
    assert list(encode_prompts(prompts, tokenizer, max_prompt_length=2, max_new_tokens=1, key="kept").ids) == list(
        first.ids
    )
    assert caplog.messages == [said]


def test_a_long_prompt_among_many_is_named(tokenizer: Any) -> None:
    prompts = ["short"] * N
    prompts[N - 5] = "long " * 50
    with pytest.raises(FrugalignError, match=f"^Prompt {N - 4} has "):
        encode_prompts(prompts, tokenizer, max_new_tokens=3, max_context=20)
