"""Rows saved as they are finished, so that a killed run resumes where it stopped.

Each line of the file holds the rows of one chunk with what they cost, so both survive a kill or neither does. A run that is
resumed thus counts what it kept, and not what the kill threw away. A line begins with a hash of its content and of the lines
before it. A line that was damaged, moved or edited is dropped with all that follow, and its rows are done again.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypedDict, cast

from frugalign.base.files import write_atomic, writing
from frugalign.base.json_files import append_lines
from frugalign.base.json_types import mismatch
from frugalign.base.ledger import Counts, Ledger
from frugalign.base.parsing import parse_json

_log = logging.getLogger(__name__)


class _Chunk(TypedDict):
    rows: list[Any]
    costs: Counts


class PartialWork:
    """The finished rows of a task. The first line identifies the task; a different task starts afresh.

    Attributes:
        rows: all finished rows.
        spent: what the rows cost that were read from the file.
    """

    def __init__(self, path: Path | None, *identity: Any) -> None:
        """Read what an interrupted run left at `path`. The `repr` of `identity` identifies the task.

        Args:
            path: the file; None keeps the rows in memory only.

        Raises:
            FrugalignError: the file cannot be read or written.
        """
        self.path, self.rows, self.spent, self._chain = path, list[Any](), Ledger(), b""
        if path is None:
            return
        task = json.dumps(hashlib.sha256(repr(identity).encode()).hexdigest()[:24]).encode()
        with writing(path):
            lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []  # the last one has no end
            self._chain = task
            if lines[:1] != [task]:
                write_atomic(path, task + b"\n")
                return
            whole = len(task) + 1
            for line in lines[1:]:
                chain, _, content = line.partition(b" ")
                chunk = _chunk(content) if chain == _next(self._chain, content) else None
                if chunk is None:
                    _log.warning("%s is damaged: what follows its first %d rows is done again.", path, len(self.rows))
                    break
                self._chain = chain
                whole += len(line) + 1
                self.rows += chunk["rows"]
                self.spent.count(**chunk["costs"])
            os.truncate(path, whole)

    def add(self, rows: Iterable[Any], spent: Ledger | None = None) -> None:
        """Append a chunk of rows, with what they cost."""
        new = list(rows)
        self.rows += new
        if self.path is not None:
            chunk = {"rows": new, "costs": (spent or Ledger()).counts()}
            content = json.dumps(chunk, ensure_ascii=False, default=str)
            self._chain = _next(self._chain, content.encode())
            append_lines(self.path, [f"{self._chain.decode()} {content}"])


def _next(chain: bytes, content: bytes) -> bytes:
    """The hash that a line begins with. `chain`: that of the line before, or the first line."""
    return hashlib.sha256(chain + b"\n" + content).hexdigest()[:24].encode()


def _chunk(line: bytes) -> _Chunk | None:
    """The chunk in a line; None for a damaged one."""
    try:
        found = parse_json(line)
    except ValueError:
        return None
    if mismatch(found, _Chunk) is not None:
        return None
    costs = found["costs"]
    whole = costs.keys() <= Ledger().counts().keys() and all(number >= 0 for number in costs.values())
    return cast(_Chunk, found) if whole else None
