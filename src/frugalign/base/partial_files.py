"""Rows saved as they are finished, so that a killed run resumes where it stopped."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any


class PartialWork:
    """The finished rows of a task, one JSON line each. The first line identifies the task; a different task starts
    afresh."""

    def __init__(self, path: Path | None, *identity: Any) -> None:
        """Read what an interrupted run left at `path`. The `repr` of `identity` identifies the task.

        Args:
            path: the file; None keeps the rows in memory only.
        """
        self.path, self.rows = path, list[Any]()
        if path is None:
            return
        key = hashlib.sha256(repr(identity).encode()).hexdigest()[:24]
        # A kill can cut the last line, even within a character: drop it before decoding.
        # Not splitlines, which also splits at characters that a response may hold.
        whole = path.read_bytes().split(b"\n")[:-1] if path.is_file() else []
        lines = [line.decode() for line in whole]
        lines = lines if lines[:1] == [key] else [key]
        self.rows = [json.loads(line) for line in lines[1:]]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")

    def add(self, rows: Iterable[Any]) -> None:
        """Append these rows."""
        new = list(rows)
        self.rows += new
        if self.path is not None:
            with self.path.open("a", encoding="utf-8") as file:
                file.write("".join(json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in new))
