"""Rows of a data set a part at a time, and the choice of rows by numbers that take eight bytes each."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np

from frugalign.data.on_disk import ROWS, kept_numbers, key_of

if TYPE_CHECKING:
    from datasets import Dataset

Numbers = np.ndarray[Any, Any]


def parts(values: Iterable[Any]) -> Iterator[list[Any]]:
    """The values in lists of at most `ROWS`. A column of a data set is decoded a part at a time, which is faster than row by row."""
    if isinstance(values, Sequence):
        yield from (list(values[start : start + ROWS]) for start in range(0, len(values), ROWS))
        return
    rest = iter(values)
    while part := list(islice(rest, ROWS)):
        yield part


def each(values: Iterable[Any]) -> Iterator[Any]:
    """The values one by one, read a part at a time."""
    for part in parts(values):
        yield from part


def numbers_of(values: Iterable[Any], of: Callable[[Any], Any], dtype: Any) -> Numbers:
    """A number of every value. One part of the values is in memory at a time."""
    found = [np.array([of(value) for value in part], dtype=dtype) for part in parts(values)]
    return np.concatenate(found) if found else np.empty(0, dtype=dtype)


def choose(dataset: Dataset, rows: Numbers) -> Dataset:
    """The rows with these numbers, in this order. `Dataset.select` would hold every number as a Python object."""
    import pyarrow as pa
    from datasets import Dataset
    from datasets.table import InMemoryTable

    if len(rows) == len(dataset) and bool((rows == np.arange(len(rows))).all()):
        return dataset
    if not len(rows):
        return dataset.select([])
    before = dataset._indices
    if before is not None:
        rows = before.column(0).take(pa.array(rows)).to_numpy()
    rows = rows.astype(np.uint64)
    return Dataset(
        dataset.data,
        info=dataset.info.copy(),
        split=dataset.split,
        indices_table=InMemoryTable(pa.table({"indices": rows})),
        fingerprint=key_of(dataset._fingerprint, "rows", _digest(rows)),
    )


def kept_key(dataset: Dataset, *what: Any) -> str | None:
    """The key under which something that was made of this data set is kept: if it has many rows and is mapped from files. Else None."""
    return key_of(dataset._fingerprint, *what) if len(dataset) > ROWS and dataset.cache_files else None


def kept_of(dataset: Dataset, what: Sequence[Any], make: Callable[[], Numbers]) -> Numbers:
    """Numbers that `make` finds in a data set, found once if it is large. `what`: identifies them."""
    return kept_numbers(kept_key(dataset, *what), make)


def kept_text(dataset: Dataset, what: str, make: Callable[[], str]) -> str:
    """A text that `make` finds in a data set, such as a hash, found once if it is large."""
    return str(kept_of(dataset, [what], lambda: np.array([make()]))[0])


def _digest(rows: Numbers) -> str:
    import hashlib

    return hashlib.sha256(rows.tobytes()).hexdigest()
