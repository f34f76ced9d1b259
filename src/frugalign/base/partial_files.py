"""Rows of work on their way to the disk, so that a killed run goes on with what it had."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any


class Unfinished:
    """What is finished of some work, as lines of JSON under a first line that stands for what was asked; other work does not go on with it."""

    def __init__(self, path: Path | None, *asked: Any) -> None:
        """Read what an interrupted run left at `path`, for work that is told apart by the `repr` of `asked`.

        Args:
            path: the file; None: nothing is read or written, the rows are in memory alone.
        """
        self.path, self.rows = path, list[Any]()
        if path is None:
            return
        key = hashlib.sha256(repr(asked).encode()).hexdigest()[:24]
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
