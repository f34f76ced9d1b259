"""JSON and JSONL files of a run: read with their type checked, and appended to in whole lines."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from frugalign.base.errors import FrugalignError
from frugalign.base.files import announce, reason_of, writing
from frugalign.base.json_types import mismatch
from frugalign.base.parsing import parse_json


def read_json(path: Path, kind: Any = dict[str, Any], *, nan: bool = False) -> dict[str, Any]:
    """The object in a JSON file. Empty if the file does not exist.

    Args:
        kind: the type of the content, such as a TypedDict; see `frugalign.base.json_types`.
        nan: accept NaN and infinity, which are not JSON.

    Raises:
        FrugalignError: the file cannot be read, is not JSON, or is of another type. The message names the place.
    """
    if not path.exists():
        return {}
    try:
        content = parse_json(path.read_text(encoding="utf-8"), strict=not nan)
    except OSError as error:
        raise FrugalignError(f"Cannot read {path}: {reason_of(error)}.") from error
    except ValueError as error:
        raise FrugalignError(f"{path} is not valid JSON: {error}.") from error
    if problem := mismatch(content, kind):
        raise FrugalignError(f"{path} is damaged: {problem}.")
    found: dict[str, Any] = content
    return found


def read_lines(path: Path, kind: Any = dict[str, Any], *, whole: bool = False) -> list[dict[str, Any]]:
    """The objects in a JSONL file. A last line that a crash cut short is left out, and so are lines that are not objects
    of this `kind`.

    Args:
        whole: refuse such lines, for a file that is written at once.

    Raises:
        FrugalignError: the file cannot be read, or a line is refused.
    """
    try:
        content = path.read_bytes() if path.exists() else b""
    except OSError as error:
        raise FrugalignError(f"Cannot read {path}: {reason_of(error)}.") from error
    found: list[dict[str, Any]] = []
    # Not splitlines, which also splits at characters that a response may hold.
    for number, line in enumerate(content.removesuffix(b"\n").split(b"\n"), start=1):
        try:
            row = parse_json(line)
            problem = mismatch(row, kind)
        except ValueError:
            row, problem = None, "it is not JSON"
        if problem is None:
            found.append(row)
        elif whole and content:
            raise FrugalignError(f"{path}, line {number} is damaged: {problem}.")
    return found


def append_lines(path: Path, lines: Iterable[str]) -> None:
    """Add whole lines to a file in an existing folder. If that fails, the file stays as it was.

    Raises:
        FrugalignError: the file cannot be written, or its folder is gone.
    """
    data = "".join(f"{line}\n" for line in lines).encode("utf-8")
    with writing(path):
        announce("append", path)
        with path.open("ab", buffering=0) as file:
            size = file.tell()
            try:
                rest = memoryview(data)
                while rest:
                    rest = rest[file.write(rest) or 0 :]
            except BaseException:
                file.truncate(size)
                raise
        announce("appended", path)
