"""Build one Arrow table from batches of rows. A value that does not fit its column is a problem of its row."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from frugalign.data.on_disk import Spill
from frugalign.data.rows import Problem, json_type

_HALF = re.compile("[\ud800-\udfff]")
# UnicodeEncodeError, a ValueError, is half a character; OverflowError an integer beyond 64 bits.
_MISFITS = (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError, ValueError, OverflowError, TypeError)
_UNEQUAL_NUMBERS = "holds fractions, and whole numbers that are too large to stand beside them"
_FRACTION = r"^-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][-+]?[0-9]+)?$"
INT64 = range(-(2**63), 2**63)


class Columns:
    """The columns of one file, each with one type. Whole numbers and fractions share a type; null fits every type.

    `spill` keeps the rows, which take no memory if there are many.
    """

    def __init__(self, file: str, spill: Spill) -> None:
        self.file = file
        self._spill = spill
        self.n_rows = 0
        self.problems: list[Problem] = []
        self._chunks: dict[str, list[pa.Array]] = {}
        self._types: dict[str, pa.DataType] = {}
        self._first: dict[str, tuple[int, Any]] = {}

    def add(self, columns: dict[str, Any], numbers: Sequence[int]) -> None:
        """Append rows: a list of Python values or an Arrow array per column."""
        for name in columns.keys() - self._chunks.keys():
            if _HALF.search(name):
                self.problems.append(
                    Problem(self.file, None, f"the name of the column `{name}` holds half a character")
                )
        arrays: dict[str, pa.ChunkedArray] = {}
        for name in list(dict.fromkeys([*self._chunks, *columns])):
            values = columns.get(name)
            if values is None:
                arrays[name] = pa.chunked_array([pa.nulls(len(numbers))])
            elif isinstance(values, list):
                arrays[name] = pa.chunked_array([self._array(name, values, numbers)])
            elif (found := self._arrow(name, values, numbers)) is not None:
                arrays[name] = found
        # By number, as a name that holds half a character cannot be stored.
        table = pa.table(list(arrays.values()), names=[str(number) for number in range(len(arrays))])
        for name, kept in zip(arrays, self._spill.keep(table).columns, strict=True):
            if name not in self._chunks:  # the rows before did not have it
                self._chunks[name] = [pa.nulls(self.n_rows)] if self.n_rows else []
            self._chunks[name].extend(kept.chunks)
        self.n_rows += len(numbers)

    def _arrow(self, name: str, values: pa.ChunkedArray, numbers: Sequence[int]) -> pa.ChunkedArray | None:
        """A column that Arrow has read; None if its type does not fit, which is a problem."""
        if pa.types.is_dictionary(values.type):
            values = pa.chunked_array([chunk.dictionary_decode() for chunk in values.chunks])
        try:
            self._types[name] = _common(self._types.get(name, pa.null()), values.type)
        except _MISFITS:
            self.problems.append(Problem(self.file, numbers[0], f"`{name}` changes its type at this row"))
            return None
        return values

    def _array(self, name: str, values: list[Any], numbers: Sequence[int]) -> pa.Array:
        known = self._types.get(name, pa.null())
        try:
            found = pa.array(values)
            if pa.types.is_floating(found.type) and bool in set(map(type, values)):
                raise TypeError("Arrow would read true as 1.0")
            self._types[name] = _common(known, found.type)
            if name not in self._first and not pa.types.is_null(found.type):
                place = next(place for place, value in enumerate(values) if value is not None)
                self._first[name] = (numbers[place], values[place])
        except _MISFITS:
            return self._one_by_one(name, values, numbers)
        return found

    def _one_by_one(self, name: str, values: list[Any], numbers: Sequence[int]) -> pa.Array:
        """Name every value that does not fit, and put null in its place."""
        fitting: list[Any] = []
        for number, value in zip(numbers, values, strict=True):
            reason = None if value is None else self._misfit(name, value, number)
            if reason is not None:
                self.problems.append(Problem(self.file, number, reason))
            fitting.append(None if reason is not None else value)
        try:
            return pa.array(fitting, type=self._types.get(name, pa.null()))
        except _MISFITS:
            self.problems.append(Problem(self.file, numbers[0], f"`{name}` {_UNEQUAL_NUMBERS}"))
            return pa.nulls(len(values))

    def _misfit(self, name: str, value: Any, number: int) -> str | None:
        """Why a value does not fit its column, or None. The first value decides the column's type."""
        if (reason := not_storable(name, value)) is not None:
            return reason
        first_number, first = self._first.setdefault(name, (number, value))
        try:
            own = pa.array([value]).type
        except _MISFITS:
            return f"`{name}` mixes types within this row"
        try:
            if isinstance(value, bool) is not isinstance(first, bool):
                raise TypeError
            self._types[name] = _common(self._types.get(name, pa.null()), own)
        except _MISFITS:
            own_type, other_type = json_type(value), json_type(first)
            if own_type == other_type:
                return f"`{name}` holds values of other types than in row {first_number}"
            return f"`{name}` is {own_type}, but row {first_number} has {other_type}"
        return None

    def replace(self, name: str, change: Callable[[Any], Any]) -> None:
        """Change every value that is text; the others stay as they are."""
        chunks = self._chunks.get(name, [])
        for place, chunk in enumerate(chunks):
            if is_text(chunk.type):
                chunks[place] = self._kept([None if value is None else change(value) for value in chunk.to_pylist()])
        found = pa.null()
        for chunk in chunks:
            found = _common(found, chunk.type)
        self._types[name] = found

    def combine(self, name: str, other: str, change: Callable[[Any, Any], Any]) -> None:
        """Change every value of a column by the value of another one in its row."""
        for place, (chunk, others) in enumerate(zip(self._chunks[name], self._chunks[other], strict=True)):
            pairs = zip(chunk.to_pylist(), others.to_pylist(), strict=True)
            self._chunks[name][place] = self._kept([change(value, beside) for value, beside in pairs])

    def _kept(self, values: list[Any]) -> pa.Array:
        return self._spill.keep(pa.table({"x": pa.array(values)})).column("x").chunk(0)

    def has_text(self, name: str) -> bool:
        """Whether the column holds text."""
        return is_text(self._types.get(name, pa.null()))

    def read_numbers(self, names: Sequence[str]) -> None:
        """Turn columns of text that hold nothing but numbers, or nothing but true and false, into such columns."""
        for name in names:
            found = _numbers(self._joined(name)) if self.has_text(name) else None
            if found is not None:
                self._chunks[name], self._types[name] = list(found.chunks), found.type

    def table(self) -> pa.Table:
        """All rows. With problems, the values that do not fit are null."""
        columns = {}
        for name in self._chunks:
            try:
                columns[name] = self._joined(name)
            except _MISFITS:
                self.problems.append(Problem(self.file, None, f"`{name}` {_UNEQUAL_NUMBERS}"))
        return pa.table(columns)

    def _joined(self, name: str) -> pa.ChunkedArray:
        kind = self._types.get(name, pa.null())
        tables = [pa.table({"x": pa.array([], type=kind)}), *(pa.table({"x": chunk}) for chunk in self._chunks[name])]
        return pa.concat_tables(tables, promote_options="permissive").column("x")


def _common(one: pa.DataType, other: pa.DataType) -> pa.DataType:
    if one.equals(other):
        return one
    schemas = [pa.schema([("x", kind)]) for kind in (one, other)]
    return pa.unify_schemas(schemas, promote_options="permissive").field("x").type


def is_text(kind: pa.DataType) -> bool:
    """Whether this is one of Arrow's types of text."""
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def not_storable(name: str, value: Any) -> str | None:
    """Why no column can hold this value, however deep the reason lies in it."""
    if isinstance(value, str):
        found = _HALF.search(value)
        return None if found is None else f"`{name}` holds half a character, U+{ord(found[0]):04X}"
    if isinstance(value, int):
        return None if value in INT64 else f"`{name}` holds an integer beyond 64 bits"
    inner: list[Any] = []
    if isinstance(value, list):
        inner = value
    elif isinstance(value, dict):
        inner = [*value.keys(), *value.values()]
    return next((reason for each in inner if (reason := not_storable(name, each)) is not None), None)


def _numbers(column: pa.ChunkedArray) -> pa.ChunkedArray | None:
    """A column of text as booleans, whole numbers or fractions; None if one of its values is something else.

    A number with leading zeros or a plus sign is text, as in a postcode. So are nan, inf and None.
    """
    if column.null_count == len(column):
        return None
    if _every(column, lambda chunk: pc.is_in(pc.utf8_lower(chunk.drop_null()), pa.array(["true", "false"]))):
        return _each(column, lambda chunk: pc.equal(pc.utf8_lower(chunk), "true"))
    if _every(column, lambda chunk: pc.match_substring_regex(chunk, r"^(0|-?[1-9][0-9]{0,17})$")):
        return _each(column, lambda chunk: pc.cast(chunk, pa.int64()))
    if _every(column, lambda chunk: pc.match_substring_regex(chunk, _FRACTION)):
        found = _each(column, lambda chunk: pc.cast(chunk, pa.float64()))
        return found if _every(found, pc.is_finite) else None
    return None


def _every(column: pa.ChunkedArray, test: Callable[[pa.Array], pa.Array]) -> bool:
    """Whether a test holds for every value that is not null. One chunk is in memory at a time."""
    return all(pc.all(test(chunk)).as_py() is not False for chunk in column.chunks)


def _each(column: pa.ChunkedArray, change: Callable[[pa.Array], pa.Array]) -> pa.ChunkedArray:
    return pa.chunked_array([change(chunk) for chunk in column.chunks])
