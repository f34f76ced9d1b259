"""Lists of token ids in a column of an Arrow table, each read when it is asked for."""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Any, overload

import numpy as np
import pyarrow as pa

from frugalign.base.errors import FrugalignError
from frugalign.data.on_disk import ROWS

if TYPE_CHECKING:
    from datasets import Dataset

Ids = Sequence[Sequence[int]]
UNCLEAR = [-1]
"""Stands for the mask of an answer whose turns cannot be told apart."""


class Lists(Sequence[list[int]]):
    """Lists of whole numbers, each made when it is asked for."""

    @abstractmethod
    def row(self, number: int) -> list[int]:
        """One of the lists, for a number from 0."""

    def array(self, row: int) -> np.ndarray[Any, Any]:
        """One of the lists as int64 numbers, for a number from 0."""
        return np.array(self.row(row), dtype=np.int64)

    def lengths(self) -> np.ndarray[Any, Any]:
        """The length of every list, int64."""
        return np.fromiter(map(len, self), dtype=np.int64, count=len(self))

    def __repr__(self) -> str:
        """Their number and a hash, by which partial work is recognised."""
        digest = hashlib.sha256(self.lengths().tobytes())
        for row in range(len(self)):
            digest.update(self.array(row).tobytes())
        return f"{len(self)} lists {digest.hexdigest()}"

    @overload
    def __getitem__(self, place: int) -> list[int]: ...
    @overload
    def __getitem__(self, place: slice) -> list[list[int]]: ...
    def __getitem__(self, place: int | slice) -> list[int] | list[list[int]]:
        if isinstance(place, slice):
            return [self.row(each) for each in range(*place.indices(len(self)))]
        number = place + len(self) if place < 0 else place
        if not 0 <= number < len(self):
            raise IndexError(f"row {place} of {len(self)}")
        return self.row(number)


class StoredLists(Lists):
    """The lists of a column of type list<int64>. Null stands for an empty list."""

    def __init__(self, column: pa.ChunkedArray) -> None:
        self._chunks = [chunk for chunk in column.chunks if len(chunk)]
        self._ends = list(accumulate(map(len, self._chunks)))
        self._views: dict[int, tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]] = {}

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def row(self, number: int) -> list[int]:
        found: list[int] = self.array(number).tolist()
        return found

    def array(self, row: int) -> np.ndarray[Any, Any]:
        number = bisect_right(self._ends, row)
        values, offsets = self._view(number)
        row -= self._ends[number - 1] if number else 0
        return values[offsets[row] : offsets[row + 1]]

    def lengths(self) -> np.ndarray[Any, Any]:
        found = [np.diff(self._view(number)[1]).astype(np.int64) for number in range(len(self._chunks))]
        return np.concatenate(found) if found else np.empty(0, dtype=np.int64)

    def _view(self, number: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        if number not in self._views:
            chunk = self._chunks[number]
            self._views[number] = chunk.values.to_numpy(zero_copy_only=True), chunk.offsets.to_numpy()
        return self._views[number]


class StoredMasks(Lists):
    """The masks of answers; an empty one stands for one that is all 1, and `UNCLEAR` for one that is not known."""

    def __init__(self, masks: StoredLists, answers: StoredLists) -> None:
        self._masks, self._answers = masks, answers

    def __len__(self) -> int:
        return len(self._masks)

    def row(self, number: int) -> list[int]:
        mask = self._masks[number]
        if mask == UNCLEAR:
            raise FrugalignError(unclear_turns(number))
        return mask or [1] * len(self._answers[number])


class Twice(Lists):
    """Every list twice: row `2i` and row `2i + 1` are list i."""

    def __init__(self, lists: Ids) -> None:
        self.lists = lists

    def __len__(self) -> int:
        return 2 * len(self.lists)

    def row(self, number: int) -> list[int]:
        return list(self.lists[number // 2])

    def array(self, row: int) -> np.ndarray[Any, Any]:
        return array_of(self.lists, row // 2)

    def lengths(self) -> np.ndarray[Any, Any]:
        return np.repeat(lengths_of(self.lists), 2)


class InTurn(Lists):
    """The lists of two in turn: row `2i` is list i of the first, row `2i + 1` list i of the second."""

    def __init__(self, first: Ids, second: Ids) -> None:
        self.sides = first, second

    def __len__(self) -> int:
        return sum(map(len, self.sides))

    def row(self, number: int) -> list[int]:
        return list(self.sides[number % 2][number // 2])

    def array(self, row: int) -> np.ndarray[Any, Any]:
        return array_of(self.sides[row % 2], row // 2)

    def lengths(self) -> np.ndarray[Any, Any]:
        return np.stack([lengths_of(side) for side in self.sides], 1).reshape(-1)


def lists_in(table: pa.Table, name: str) -> Ids:
    """A column of a table with columns of lists. `PART_mask` belongs to `PART_ids`: a mask that is missing is all 1."""
    found = StoredLists(table.column(name))
    if not name.endswith("_mask"):
        return found
    return StoredMasks(found, StoredLists(table.column(f"{name.removesuffix('mask')}ids")))


def lists_of(dataset: Dataset, name: str) -> Ids:
    """A column of token ids or masks of a data set: as lists if it has few rows, else read from the disk as they are asked for."""
    if len(dataset) <= ROWS or dataset._indices is not None:
        found: Ids = dataset[name][:]
        return found
    return lists_in(dataset.data.table, name)


def lengths_of(lists: Ids) -> np.ndarray[Any, Any]:
    """The number of ids in every list, int64."""
    if isinstance(lists, Lists):
        return lists.lengths()
    return np.fromiter(map(len, lists), dtype=np.int64, count=len(lists))


def array_of(lists: Ids, row: int) -> np.ndarray[Any, Any]:
    """One of the lists as int64 numbers."""
    return lists.array(row) if isinstance(lists, Lists) else np.array(lists[row], dtype=np.int64)


def unclear_turns(row: int) -> str:
    """The sentence about an answer, numbered from 0, whose turns cannot be told apart."""
    return (
        f"Answer {row + 1}: the chat template does not show which of its turns are the assistant's; put all turns but the last into "
        "the prompt."
    )
