"""Read CSV, Parquet and stored data sets in batches of rows."""

from __future__ import annotations

import csv
import gzip
import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from frugalign.base.parsing import first_repeated
from frugalign.base.progress import set_done
from frugalign.data.data_file import DataFile
from frugalign.data.rows import BATCH_ROWS, Batch, Problem, one_line, reading

if TYPE_CHECKING:
    from datasets import Dataset

_OTHER_SEPARATORS = {";": "semicolons", "\t": "tabs", "|": "bars"}
_MAX_FIELD = 2**31 - 1


def read_csv(data: DataFile) -> Iterator[Batch]:
    """The rows of a CSV file, every value as text. An empty value is missing; `None`, `nan` and `N/A` are text."""
    file = str(data)
    csv.field_size_limit(_MAX_FIELD)
    numbers: list[int] = []
    rows: list[dict[str, Any]] = []
    problems: list[Problem] = []
    number = 0
    with reading(data) as part:
        try:
            with data.open() as raw, _text(raw, data) as text:
                first = text.readline()
                names = _header(first.removeprefix("\ufeff"))
                if isinstance(names, str):
                    yield Batch([], [], [Problem(file, None, names)])
                    return
                for number, values in _records(text):
                    reason = values if isinstance(values, str) else _row_reason(values, names)
                    if reason is not None:
                        problems.append(Problem(file, number, reason))
                        continue
                    numbers.append(number)
                    rows.append({name: value or None for name, value in zip(names, values, strict=True)})
                    if len(rows) >= BATCH_ROWS:
                        set_done(part, raw.tell())
                        yield Batch(numbers, rows, problems)
                        numbers, rows, problems = [], [], []
        except (EOFError, OSError, zlib.error) as error:
            problems.append(Problem(file, number + 1, f"the file cannot be read beyond this row ({one_line(error)})"))
    yield Batch(numbers, rows, problems)


@contextmanager
def _text(raw: Any, data: DataFile) -> Iterator[io.TextIOWrapper]:
    # Bytes that are not UTF-8 become halves of characters, so that their row can be named.
    stream = gzip.GzipFile(fileobj=raw) if data.is_gzip else raw
    with io.TextIOWrapper(stream, encoding="utf-8", errors="surrogateescape", newline="") as text:
        yield text


def _header(first: str) -> list[str] | str:
    """The names in a CSV file's first line, or why it has none."""
    if not first.strip():
        return "there are no rows" if not first else "the first line has no column names"
    if "," not in first:
        for mark, name in _OTHER_SEPARATORS.items():
            if mark in first:
                return f"the columns are separated by {name}, not by commas"
    try:
        names = next(csv.reader([first], strict=True))
    except csv.Error as error:
        return f"the line of column names is broken ({error})"
    # A table that was saved with its index has a first column without a name.
    names = [name.strip() or f"Unnamed: {place}" for place, name in enumerate(names)]
    return _two_alike(names) or names


def _records(text: io.TextIOWrapper) -> Iterator[tuple[int, list[str] | str]]:
    """Numbered records; for one that is broken, the reason."""
    reader = csv.reader(text, strict=True)
    number = 0
    while True:
        try:
            values = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            number += 1
            yield number, f"the row is not valid CSV ({one_line(error)})"
            continue
        if values:
            number += 1
            yield number, values


def _two_alike(names: list[str]) -> str | None:
    twice = first_repeated(names)
    return None if twice is None else f"two columns have the name `{twice}`"


def _row_reason(values: list[str], names: list[str]) -> str | None:
    if len(values) != len(names):
        return f"the row has {len(values)} values for {len(names)} columns"
    joined = "".join(values)
    if not joined.isascii():
        try:
            joined.encode()
        except UnicodeEncodeError:
            return "the row is not UTF-8 text"
    return None


def read_parquet(data: DataFile) -> Iterator[Batch]:
    """The rows of a Parquet file."""
    import pyarrow.parquet as pq

    number = 0
    with reading(data) as part:
        try:
            with data.open() as raw, pq.ParquetFile(raw) as stored:
                if (problem := _two_alike(stored.schema_arrow.names)) is not None:
                    raise ValueError(problem)
                total = max(1, stored.metadata.num_rows)
                for rows in stored.iter_batches(batch_size=BATCH_ROWS):
                    set_done(part, part.total * number / total)
                    yield Batch(range(number + 1, number + 1 + len(rows)), pa.Table.from_batches([rows]))
                    number += len(rows)
        except (pa.ArrowException, OSError, ValueError) as error:
            yield Batch([], [], [Problem(str(data), None, f"the file cannot be read ({one_line(error)})")])


def read_dataset(dataset: Dataset) -> Iterator[Batch]:
    """The rows of a data set that `datasets` has read."""
    number = 0
    for rows in dataset.with_format("arrow").iter(BATCH_ROWS):
        table: pa.Table = rows if isinstance(rows, pa.Table) else pa.table(rows)
        yield Batch(range(number + 1, number + 1 + len(table)), table)
        number += len(table)
