"""Rows as they are read: numbered, in batches, with the problems of those that cannot be read."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from frugalign.base.progress import READ, Part, work
from frugalign.base.wording import shown, visible

if TYPE_CHECKING:
    import pyarrow as pa

    from frugalign.data.data_file import DataFile

BATCH_ROWS = 10_000
"""Rows that are held as Python objects at once."""
_LARGE = 4 << 20
"""Bytes of a file that takes long enough for a bar."""


_QUOTED = re.compile("`([^`]*)`")
_LONGEST_NAME = 80


def _shortened(name: re.Match[str]) -> str:
    """A name in a reason, at most 80 characters long. A command keeps its length."""
    is_short = len(name[1]) <= _LONGEST_NAME or name[1].startswith("frugalign ")
    return name[0] if is_short else f"`{shown(name[1], quoted=False, longest=_LONGEST_NAME)}`"


@dataclass(frozen=True)
class Problem:
    """A problem in one row, or in the whole file if `row` is None. Rows count from 1: lines in JSON lines, records
    elsewhere."""

    file: str
    row: int | None
    reason: str

    def __post_init__(self) -> None:
        # A file that was taken apart in the wrong place has columns whose names are whole rows.
        object.__setattr__(self, "reason", _QUOTED.sub(_shortened, self.reason))

    def __str__(self) -> str:
        text = f"{self.file}: {self.reason}" if self.row is None else f"{self.file}, row {self.row}: {self.reason}"
        return printable(text)


@dataclass
class Batch:
    """Some readable rows of a file, their numbers, and the problems of the rows between them."""

    numbers: Sequence[int]
    rows: Sequence[dict[str, Any]] | pa.Table
    problems: list[Problem] = field(default_factory=list)

    @property
    def columns(self) -> list[str]:
        """Every column that some row has, in order of appearance."""
        if isinstance(self.rows, Sequence):
            return list(dict.fromkeys(key for row in self.rows for key in row))
        return list(self.rows.column_names)

    def records(self, wanted: Sequence[str]) -> Sequence[Mapping[str, Any]]:
        """The rows as mappings. From a table only the wanted columns are decoded, to save time."""
        if isinstance(self.rows, Sequence):
            return self.rows
        found: list[dict[str, Any]] = self.rows.select([name for name in wanted if name in self.columns]).to_pylist()
        return found or [{} for _ in self.numbers]

    def column(self, name: str) -> Any:
        """One column: a list of Python values, or an Arrow array."""
        if isinstance(self.rows, Sequence):
            return [row.get(name) for row in self.rows]
        return self.rows.column(name)


@dataclass(frozen=True)
class Source:
    """A file, or a split of a stored data set. `read` yields its batches; it can be called again.

    `untyped`: every value is text, as in CSV. Numbers and booleans are recognised once the whole column is known. `state`: changes when the
    content does; None where that is unknown.
    """

    file: str
    read: Callable[[], Iterator[Batch]]
    untyped: bool = False
    state: str | None = None


def reading(file: DataFile) -> AbstractContextManager[Part]:
    """Show how far a large file is read; its readers set how many bytes are done."""
    size = file.size
    return work(f"reading {file.name}", size, READ) if size >= _LARGE else nullcontext(Part(file.name, size, READ))


def json_type(value: Any) -> str:
    """The type of a value, in JSON's terms."""
    if value is None:
        return "null"
    names = {bool: "a boolean", int: "a number", float: "a number", str: "text", list: "a list", dict: "an object"}
    return names.get(type(value), f"a {type(value).__name__}")


def printable(text: str) -> str:
    """The text on one line, with control characters and halves of characters written as escapes."""
    return visible(text).replace("\n", "\\n").replace("\t", "\\t")


def one_line(error: BaseException) -> str:
    """An error's message on one line, cut to 200 characters."""
    text = " ".join(str(error).split()).rstrip(".") or type(error).__name__
    return text if len(text) <= 200 else text[:200] + "…"
