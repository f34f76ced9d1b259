"""Read files, folders and hub data sets as numbered rows.

Our own JSON-lines reader names every broken row, not only the first. There is no streaming: prompts are small
compared with the model, so a data set is held in memory.
"""

from __future__ import annotations

import gzip
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from frugalign.base.errors import FrugalignError
from frugalign.base.specs import resolve_name

if TYPE_CHECKING:
    from datasets import Dataset

_log = logging.getLogger(__name__)

_JSON_LINES, _TABLES = ("jsonl", "json"), ("csv", "parquet")
_SPLITS = {"train": "train", "test": "test", "validation": "validation", "valid": "validation", "dev": "validation"}


@dataclass(frozen=True)
class Problem:
    """A problem in one row, or in the whole file if `row` is None. Rows count from 1: lines in JSON lines, records
    elsewhere."""

    file: str
    row: int | None
    reason: str

    def __str__(self) -> str:
        return f"{self.file}: {self.reason}" if self.row is None else f"{self.file}, row {self.row}: {self.reason}"


@dataclass
class Rows:
    """The readable rows of one file, their row numbers, and the problems in the other rows."""

    file: str
    rows: Sequence[Mapping[str, Any]] | Dataset
    numbers: Sequence[int]
    problems: list[Problem] = field(default_factory=list)

    @property
    def is_table(self) -> bool:
        """Whether the rows come from a format whose columns have one type each."""
        return not isinstance(self.rows, list)

    @property
    def columns(self) -> list[str]:
        """Every column that some row has, in order of appearance."""
        named: list[str] | None = getattr(self.rows, "column_names", None)
        return list(named) if named is not None else list(dict.fromkeys(key for row in self.rows for key in row))

    def items(self, wanted: Sequence[str]) -> Iterator[tuple[int, Mapping[str, Any]]]:
        """Yield (number, row). From a table only the wanted columns are decoded, to save time."""
        rows: Any = self.rows
        if self.is_table:
            rows = rows.select_columns([name for name in rows.column_names if name in wanted])
        yield from zip(self.numbers, rows, strict=True)


def read_splits(name: str) -> dict[str, list[Rows]]:
    """The splits of a data set, each as the rows of its files.

    `name`: hub id, file (.jsonl .json .csv .parquet, also .gz), folder, or `package.module:attribute` that names one.
    In a folder, files named train*, test* and validation* are the splits. A folder without such names, or a single
    file, is one split, `train`.

    Raises:
        FrugalignError: nothing exists under this name. Problems inside a file are in its `problems`.
    """
    name = resolve_name(name)
    path = Path(name).expanduser()
    if path.is_dir():
        if any((path / mark).is_file() for mark in ("dataset_dict.json", "state.json")):
            return _read_saved(path)
        return {split: [_read_file(file) for file in files] for split, files in _split_files(path).items()}
    if path.is_file():
        return {"train": [_read_file(path)]}
    if name.startswith((".", "/", "~")) or _format(path) is not None:
        raise FrugalignError(f"There is no data file or folder {name}.")
    return _read_hub(name)


def _format(path: Path) -> str | None:
    suffixes = [suffix.lstrip(".").lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] == "gz":
        suffixes.pop()
    return suffixes[-1] if suffixes and suffixes[-1] in (*_JSON_LINES, *_TABLES) else None


def _split_files(folder: Path) -> dict[str, list[Path]]:
    # Exports in the hub's layout keep their files in data/.
    files = sorted(file for place in (folder, folder / "data") if place.is_dir() for file in place.iterdir())
    files = [file for file in files if file.is_file() and _format(file) is not None]
    if not files:
        raise FrugalignError(f"The folder {folder} holds no .jsonl, .json, .csv or .parquet file.")
    splits: dict[str, list[Path]] = {}
    others = []
    for file in files:
        split = next((split for prefix, split in _SPLITS.items() if file.name.lower().startswith(prefix)), None)
        if split is None:
            others.append(file)
        else:
            splits.setdefault(split, []).append(file)
    if not splits:
        return {"train": others}
    if others:
        _log.warning(
            "Not read, as other files in %s are named as splits: %s.", folder, ", ".join(file.name for file in others)
        )
    return splits


def _read_file(path: Path) -> Rows:
    if _format(path) is None:
        raise FrugalignError(f"{path} is not a .jsonl, .json, .csv or .parquet file (also .gz).")
    if _format(path) in _TABLES:
        return _read_table(path)
    return _read_json(path)


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"holds {name}, which is not a JSON number")


def _read_json(path: Path) -> Rows:
    rows: list[dict[str, Any]] = []
    numbers: list[int] = []
    problems: list[Problem] = []
    file = str(path)
    opener = gzip.open if path.suffix.lower() == ".gz" else Path.open
    number = 0
    try:
        with opener(path, "rb") as stream:
            lines = _records(stream.read()) if _format(path) == "json" else enumerate(stream, start=1)
            for number, line in lines:
                if not line.strip():
                    continue
                try:
                    row = json.loads(line, parse_constant=_refuse_constant)
                except UnicodeDecodeError:
                    problems.append(Problem(file, number, "the row is not UTF-8 text"))
                except json.JSONDecodeError as error:
                    problems.append(
                        Problem(file, number, f"the row is not valid JSON ({error.msg}, column {error.colno})")
                    )
                except (ValueError, RecursionError) as error:
                    problems.append(Problem(file, number, f"the row {error}"))
                else:
                    if isinstance(row, dict):
                        rows.append(row)
                        numbers.append(number)
                    else:
                        problems.append(
                            Problem(file, number, f"the row is {json_type(row)}, not an object with columns")
                        )
    except (EOFError, OSError) as error:  # gzip.BadGzipFile is an OSError
        problems.append(Problem(file, number + 1, f"the file cannot be read beyond this row ({error})"))
    return Rows(file, rows, numbers, problems)


def _records(content: bytes) -> Iterator[tuple[int, bytes]]:
    """The numbered entries of a JSON array. A .json file that is not one complete array is read as JSON lines."""
    if content.lstrip()[:1] == b"[":
        try:
            entries = json.loads(content)
        except ValueError:
            entries = None
        if isinstance(entries, list):
            yield from ((number, json.dumps(entry).encode()) for number, entry in enumerate(entries, start=1))
            return
    yield from enumerate(content.splitlines(), start=1)


def _read_table(path: Path) -> Rows:
    import datasets

    read = datasets.Dataset.from_csv if _format(path) == "csv" else datasets.Dataset.from_parquet
    try:
        with _quiet():
            table = read(str(path), keep_in_memory=True)
    except Exception as error:  # datasets raises its own, pandas' and pyarrow's errors here
        cause = error.__cause__ or error
        return Rows(str(path), [], [], [Problem(str(path), None, f"the file cannot be read ({_one_line(cause)})")])
    return Rows(str(path), table, range(1, len(table) + 1))


def _read_saved(folder: Path) -> dict[str, list[Rows]]:
    import datasets

    try:
        found = datasets.load_from_disk(str(folder), keep_in_memory=True)
    except Exception as error:
        raise FrugalignError(f"Cannot read the data set in {folder}: {_one_line(error)}.") from error
    return _tables(str(folder), found)


def _read_hub(name: str) -> dict[str, list[Rows]]:
    import datasets

    try:
        found = datasets.load_dataset(name)
    except Exception as error:  # network, authentication, format: all user errors
        raise FrugalignError(
            f"Cannot load the data set {name!r}: it is not a local file or folder, and the hub says: {_one_line(error)}."
        ) from error
    return _tables(name, found)


def _tables(name: str, found: Any) -> dict[str, list[Rows]]:
    splits = found if isinstance(found, dict) else {"train": found}
    return {str(split): [Rows(f"{name} [{split}]", table, range(1, len(table) + 1))] for split, table in splits.items()}


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the progress bars and log lines of `datasets` while a file is read. Errors become our own message."""
    from datasets.utils import logging as noise

    shown, level = noise.is_progress_bar_enabled(), noise.get_verbosity()
    noise.disable_progress_bar()
    noise.set_verbosity(logging.CRITICAL + 1)
    try:
        yield
    finally:
        noise.set_verbosity(level)
        if shown:
            noise.enable_progress_bar()


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split()).rstrip(".") or type(error).__name__
    return text if len(text) <= 200 else text[:200] + "…"


def json_type(value: Any) -> str:
    """The type of a value, in JSON's terms."""
    if value is None:
        return "null"
    names = {bool: "a boolean", int: "a number", float: "a number", str: "text", list: "a list", dict: "an object"}
    return names.get(type(value), f"a {type(value).__name__}")
