"""Rows of work saved as they are finished, so that a killed run resumes with what it had."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any


class PartialWork:
    """The finished rows of some work, as lines of JSON under a first line that identifies the work: other work starts afresh."""

    def __init__(self, path: Path | None, *identity: Any) -> None:
        """Read what an interrupted run left at `path`, for the work that the `repr` of `identity` identifies.

        Args:
            path: the file; None keeps the rows in memory only.
        """
        self.path, self.rows = path, list[Any]()
        if path is None:
            return
        key = hashlib.sha256(repr(identity).encode()).hexdigest()[:24]
        # What follows the last end of a line was cut by a kill, perhaps within a character, so it is left out before decoding. Not
        # splitlines: it also breaks at characters that a response may hold.
        whole = path.read_bytes().split(b"\n")[:-1] if path.is_file() else []
        lines = [line.decode() for line in whole]
        lines = lines if lines[:1] == [key] else [key]
        self.rows = [json.loads(line) for line in lines[1:]]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")

    def add(self, rows: Iterable[Any]) -> None:
        """Keep these rows, after those that are there."""
        new = list(rows)
        self.rows += new
        if self.path is not None:
            with self.path.open("a", encoding="utf-8") as file:
                file.write("".join(json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in new))
