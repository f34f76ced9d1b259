"""Read JSON lines and JSON arrays row by row. Every broken row is named, not only the first."""

from __future__ import annotations

import gzip
import json
import math
import re
import zlib
from collections.abc import Iterable, Iterator
from typing import IO, Any

from frugalign.base.parsing import first_repeated
from frugalign.base.progress import set_done
from frugalign.data.data_file import DataFile
from frugalign.data.rows import BATCH_ROWS, Batch, Problem, json_type, one_line, reading

MAX_DEPTH = 32
"""How deep lists and objects may be nested in a row. Deeper ones exhaust the stack of what reads them later."""
Entry = tuple[int, Any]
"""A row's number and its value, or a `ValueError` with the reason that it cannot be read."""
_SPACE = re.compile(r"[ \t\n\r]*")
_KEY = re.compile(r'"\s*:')
"""The end of a key; text that looks like one only costs a second look."""


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"the row holds {name}, which is not a JSON number")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"the row holds {text}, which is beyond the largest number")
    return number


_STRICT = json.JSONDecoder(parse_constant=_refuse_constant, parse_float=_finite)


def _unique(items: list[tuple[str, Any]]) -> None:
    if (twice := first_repeated([name for name, _ in items])) is not None:
        raise ValueError(f"the row has the key {twice!r} twice")


_UNIQUE = json.JSONDecoder(object_pairs_hook=_unique)
_LENIENT = json.JSONDecoder()


def read_json(data: DataFile, *, is_lines: bool) -> Iterator[Batch]:
    """The rows of a JSON file in batches.

    Args:
        is_lines: one object per line. Otherwise the file is one array of objects, or else it is read as lines.
    """
    file, number = str(data), 0
    numbers: list[int] = []
    rows: list[dict[str, Any]] = []
    problems: list[Problem] = []
    with reading(data) as part:
        try:
            with data.open() as raw:
                stream: Any = gzip.GzipFile(fileobj=raw) if data.is_gzip else raw
                for number, value in _lines(stream) if is_lines else _entries(stream):
                    if isinstance(value, dict):
                        numbers.append(number)
                        rows.append(value)
                        if len(rows) >= BATCH_ROWS:
                            set_done(part, raw.tell())
                            yield Batch(numbers, rows, problems)
                            numbers, rows, problems = [], [], []
                    elif isinstance(value, _WholeFile):
                        problems.append(Problem(file, None, str(value)))
                        break
                    elif isinstance(value, ValueError):
                        problems.append(Problem(file, number, str(value)))
                    else:
                        reason = f"the row is {json_type(value)}, not an object with columns"
                        problems.append(Problem(file, number, reason))
        except (EOFError, OSError, zlib.error) as error:  # gzip.BadGzipFile is an OSError
            reason = f"the file cannot be read beyond this row ({one_line(error)})"
            problems.append(Problem(file, number + 1, reason))
    yield Batch(numbers, rows, problems)


class _WholeFile(ValueError):
    """A reason that concerns the whole file."""


def _lines(stream: Iterable[bytes]) -> Iterator[Entry]:
    first = True
    for number, line in enumerate(stream, start=1):
        if not line.strip():
            continue
        if first and (reason := _not_lines(line)) is not None:
            yield number, _WholeFile(reason)
            return
        first = False
        yield number, _row(line)


def _not_lines(first: bytes) -> str | None:
    """Why a file that begins with this line does not hold one object per line, if that can be told."""
    start = first.removeprefix(b"\xef\xbb\xbf").strip()
    if start == b"[" or re.match(rb"\[\s*\{", start):
        return "the file is one JSON array, not one object per line; rename it to .json"
    if start == b"{":
        return "the file is one JSON object over several lines, not one object per line"
    return None


def _row(line: bytes) -> Any:
    """The value on a line, or a `ValueError` that says why there is none."""
    try:
        text = line.decode("utf-8").strip().removeprefix("\ufeff")
    except UnicodeDecodeError:
        return ValueError("the row is not UTF-8 text")
    try:
        value = _STRICT.decode(text)
        return _checked(value, text)
    except (ValueError, RecursionError) as error:
        return _reason(error)


def _checked(value: Any, text: str) -> Any:
    """The value, if it is not nested too deeply and no object in it has a key twice. `text`: its JSON.

    Raises:
        ValueError: it is, or it has.
    """
    if text.count("[") + text.count("{") > MAX_DEPTH and _is_too_deep(value):
        raise _too_deep()
    # Only a row with inner objects, or with a key twice, has more keys in its text than the row has columns.
    if isinstance(value, dict) and len(_KEY.findall(text)) > len(value):
        _UNIQUE.decode(text)
    return value


def _reason(error: Exception) -> ValueError:
    if isinstance(error, RecursionError):
        return _too_deep()
    if isinstance(error, json.JSONDecodeError):
        return ValueError(f"the row is not valid JSON ({error.msg}, column {error.colno})")
    text = str(error)
    # Python refuses to read an integer of more than 4,300 digits, and says so in its own terms.
    return ValueError(text if text.startswith("the row ") else "the row holds an integer beyond 64 bits")


def _too_deep() -> ValueError:
    return ValueError(f"the row nests lists and objects more than {MAX_DEPTH} deep")


def _is_too_deep(value: Any) -> bool:
    level = [value]
    for _ in range(MAX_DEPTH + 1):
        level = [
            inner
            for each in level
            if isinstance(each, (list, dict))
            for inner in (each.values() if isinstance(each, dict) else each)
        ]
        if not level:
            return False
    return True


def _entries(stream: IO[bytes]) -> Iterator[Entry]:
    """The numbered entries of a JSON array. A file that is not an array is read as lines, or as one object."""
    content = stream.read()
    start = content.removeprefix(b"\xef\xbb\xbf").lstrip()[:1]
    if start != b"[":
        if start == b"{" and (whole := _row(content)) and isinstance(whole, dict):
            yield 1, _wrapped(whole) or whole
        else:
            yield from ((number, _row(line)) for number, line in enumerate(content.split(b"\n"), 1) if line.strip())
        return
    try:
        text = content.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        yield 1, _WholeFile(f"the file is not UTF-8 text (line {line})")
        return
    yield from _array(text)


def _wrapped(whole: dict[str, Any]) -> ValueError | None:
    """A reason to refuse a file that is one object around a list of rows."""
    inner = [name for name, value in whole.items() if isinstance(value, list) and value and isinstance(value[0], dict)]
    if len(inner) != 1 or inner[0] in ("prompt", "chosen", "rejected", "completion", "messages", "conversations"):
        return None
    return _WholeFile(f"the file is one object, and its rows seem to be the list {inner[0]!r}; write that list alone")


def _array(text: str) -> Iterator[Entry]:
    """Decode an array entry by entry, so that it is never held as Python objects at once."""
    place, number = text.index("[") + 1, 0
    while True:
        place = _SPACE.match(text, place).end()  # type: ignore[union-attr]  # it matches anywhere
        if text[place : place + 1] == "]" and number == 0:
            break
        number += 1
        try:
            value, end = _STRICT.raw_decode(text, place)
            _checked(value, text[place:end])
        except (ValueError, RecursionError) as error:
            value = _reason(error)
            try:
                end = _LENIENT.raw_decode(text, place)[1]
            except (ValueError, RecursionError):  # where this entry ends is unknown
                yield number, ValueError(f"{value}; the rest of the file is not read")
                return
        yield number, value
        place = _SPACE.match(text, end).end()  # type: ignore[union-attr]
        if text[place : place + 1] != ",":
            break
        place += 1
    rest = text[place : place + 1]
    if rest != "]":
        yield number + 1, ValueError("the array is not closed" if not rest else f"there is {rest!r} after an entry")
    elif text[place + 1 :].strip():
        yield number + 1, ValueError("there is more text after the end of the array")
