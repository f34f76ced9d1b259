"""A bar while a large file is read, in a terminal."""

from __future__ import annotations

import logging
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from frugalign.base.terminal import console

if TYPE_CHECKING:
    from rich.progress import Progress

_AFTER_SECONDS = 1.0
_LOG_SECONDS = 10.0
_log = logging.getLogger(__name__)


class Reading:
    """Shows how far a file is read, once that takes over a second. Outside a terminal it is logged every ten seconds."""

    def __init__(self, path: Path) -> None:
        self._name, self._size = path.name, path.stat().st_size
        self._said = time.monotonic()
        self._bar: Progress | None = None

    def __enter__(self) -> Reading:
        return self

    def update(self, position: int, rows: int) -> None:
        """Show `position` (bytes read of the file) and the rows so far."""
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=position)
        elif sys.stderr.isatty():
            if time.monotonic() - self._said > _AFTER_SECONDS:
                self._start(position)
        elif time.monotonic() - self._said > _LOG_SECONDS:
            self._said = time.monotonic()
            _log.info("Reading %s: %s rows, %d %%.", self._name, f"{rows:,}", 100 * position // max(1, self._size))

    def _start(self, position: int) -> None:
        from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

        columns = (TextColumn("reading {task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
        self._bar = Progress(*columns, console=console(stderr=True), transient=True)
        self._bar.add_task(self._name, total=self._size, completed=position)
        self._bar.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
