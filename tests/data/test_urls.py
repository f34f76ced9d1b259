"""Data by URL, by pattern, and in folders elsewhere: `memory://` stands for every file system that `fsspec` knows."""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest
from datasets import Dataset, DatasetDict

from frugalign.base.errors import FrugalignError
from frugalign.data import load_splits, validate_files
from frugalign.data.convert import convert
from frugalign.data.load_files import columns_of

ROWS = [{"prompt": f"question {i}", "n": i} for i in range(12)]


def lines(rows: list[dict[str, object]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


@pytest.fixture
def bucket() -> Iterator[str]:
    """A folder of two training shards, a packed test file and a table elsewhere."""
    files = fsspec.filesystem("memory")
    parquet = io.BytesIO()
    Dataset.from_list(ROWS[5:8]).to_parquet(parquet)
    for name, content in {
        "train-0.jsonl": lines(ROWS[:5]),
        "train-1.parquet": parquet.getvalue(),
        "test.jsonl.gz": gzip.compress(lines(ROWS[8:])),
        "notes.txt": b"not data",
        "raw/a.csv": b"prompt,n\nquestion 0,0\n",
        "raw/b.json": json.dumps(ROWS[1:3]).encode(),
    }.items():
        files.pipe(f"/bucket/{name}", content)
    yield "memory://bucket"
    files.rm("/bucket", recursive=True)


def test_a_folder_elsewhere_has_its_files_as_splits(bucket: str) -> None:
    splits = load_splits(bucket)
    assert {name: data.to_list() for name, data in splits.items()} == {"train": ROWS[:8], "test": ROWS[8:]}


@pytest.mark.parametrize(
    ("name", "n"),
    [
        ("train-0.jsonl", 5),
        ("train-*", 8),
        ("train-1.parquet", 3),
        ("test.jsonl.gz", 4),
        ("raw/*", 3),
        ("**/*.json*", 9),
    ],
)
def test_files_and_patterns_elsewhere(bucket: str, name: str, n: int) -> None:
    assert sum(map(len, load_splits(f"{bucket}/{name}").values())) == n


def test_patterns_here(tmp_path: Path) -> None:
    for number in range(3):
        (tmp_path / f"shard-{number}.jsonl").write_bytes(lines(ROWS[4 * number : 4 * number + 4]))
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "shard-9.jsonl").write_bytes(lines(ROWS[:1]))
    assert load_splits(f"{tmp_path}/shard-*.jsonl")["train"].to_list() == ROWS
    assert len(load_splits(f"{tmp_path}/shard-[01].jsonl")["train"]) == 8
    assert len(load_splits(f"{tmp_path}/**/*.jsonl")["train"]) == 13
    assert len(load_splits(f"file://{tmp_path}/shard-?.jsonl")["train"]) == 12
    # A file whose own name looks like a pattern is that file.
    (tmp_path / "a[1].jsonl").write_bytes(lines(ROWS[:2]))
    assert len(load_splits(f"{tmp_path}/a[1].jsonl")["train"]) == 2


def test_a_saved_data_set_by_url(tmp_path: Path) -> None:
    DatasetDict({"train": Dataset.from_list(ROWS[:9]), "test": Dataset.from_list(ROWS[9:])}).save_to_disk(
        tmp_path / "saved"
    )
    assert {name: len(data) for name, data in load_splits(f"file://{tmp_path}/saved").items()} == {
        "train": 9,
        "test": 3,
    }


def test_other_commands_read_urls_too(bucket: str, tmp_path: Path) -> None:
    assert validate_files(f"{bucket}/train-*").n_rows == 8
    assert columns_of(bucket) == {"prompt", "n"}
    fsspec.filesystem("memory").pipe("/bucket/alpaca.jsonl", lines([{"instruction": "Hello", "output": "Hi"}]))
    convert(f"{bucket}/alpaca.jsonl", str(tmp_path / "out.jsonl"))
    assert json.loads((tmp_path / "out.jsonl").read_text()) == {"prompt": "Hello", "completion": "Hi"}


def test_a_broken_row_elsewhere_is_named_by_its_url(bucket: str) -> None:
    fsspec.filesystem("memory").pipe("/bucket/train-2.jsonl", b'{"prompt": "fine"}\n{"prompt": ""}\n')
    with pytest.raises(FrugalignError, match=r"^memory:/+bucket/train-2.jsonl, row 2: `prompt` is empty"):
        load_splits(bucket)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("memory://bucket/missing.jsonl", r"^There is no data file or folder memory://bucket/missing.jsonl\.$"),
        ("memory://bucket/none-*.jsonl", r"^The pattern memory://bucket/none-\*.jsonl holds no .jsonl, .json"),
        ("memory://bucket/notes.txt", r"^memory:/+bucket/notes.txt is not a .jsonl"),
        ("nonsense://bucket/x.jsonl", r"^Cannot read nonsense://bucket/x.jsonl: .*nonsense"),
        ("adl://bucket/x.jsonl", r"^Cannot read adl://bucket/x.jsonl: .*[Ii]nstall"),
        ("shards/none-*.parquet", r"^The pattern shards/none-\*.parquet holds no .jsonl, .json"),
    ],
)
def test_what_is_not_there_is_one_sentence(bucket: str, name: str, sentence: str) -> None:
    with pytest.raises(FrugalignError, match=sentence) as caught:
        load_splits(name)
    assert "\n" not in str(caught.value)


def test_a_file_system_that_fails_is_one_sentence(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError("access denied\nrequest 123")

    monkeypatch.setattr(type(fsspec.filesystem("memory")), "_open", refuse)
    with pytest.raises(FrugalignError, match=r"test.jsonl.gz: the file cannot be read \(access denied request 123\)"):
        load_splits(bucket)
    monkeypatch.setattr(type(fsspec.filesystem("memory")), "info", refuse)
    with pytest.raises(FrugalignError, match=r"^Cannot read memory://bucket: access denied request 123\.$"):
        load_splits(bucket)
