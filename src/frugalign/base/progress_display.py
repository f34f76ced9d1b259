"""Show progress on stderr: bars on a terminal; in a file or a pipe, a plain line now and then.

`frugalign.base.progress` says what is in progress. Here it is drawn, with the time that the rest takes.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from frugalign.base import progress
from frugalign.base.progress import STEPS, Part
from frugalign.base.quantities import duration
from frugalign.base.terminal import console

_REFRESHES = 1
"""Drawings of the bars per second. One takes about 6 ms, and progress may cost 1 % of the time."""
_SETTLES = 0.5
"""Seconds after which a part inside another one is drawn. Shorter ones would flicker."""
_FIRST_LINE, _NEXT_LINE = 10.0, 30.0
"""Seconds before the first plain line of a part, and between two."""
_BAR = 24


class ProgressDisplay:
    """Draws the open parts on a console: bars where it is a terminal, else lines."""

    def __init__(self, on: Console | None = None, *, bars: bool = True) -> None:
        self.console = on or console(stderr=True)
        self.has_bars = bars and self.console.is_terminal and not self.console.is_dumb_terminal
        self._drawn: list[Part] = []
        self._live: Live | None = None
        self._next_line = 0.0
        self._others_had_bars = True

    def say(self, text: str) -> None:
        """Print a line, above the bars if there are any."""
        self.console.print(Text(text), soft_wrap=True)

    def opened(self, parts: list[Part]) -> None:
        """Start drawing with the first part."""
        self._drawn = list(parts)
        if not self.has_bars:
            self._next_line = time.monotonic() + _FIRST_LINE
        elif self._live is None:
            if (others := _transformers_bars()) is not None:  # they would break these
                self._others_had_bars = others.is_progress_bar_enabled()
                others.disable_progress_bar()
            self._live = Live(
                get_renderable=self._bars, console=self.console, refresh_per_second=_REFRESHES, transient=True
            )
            self._live.start()

    def moved(self, parts: list[Part]) -> None:
        """Print a line if one is due. Bars are drawn by the clock."""
        if self._live is None and time.monotonic() >= self._next_line:
            self._next_line = time.monotonic() + _NEXT_LINE
            self.say(line_of(parts))

    def closed(self, parts: list[Part], part: Part) -> None:
        """Stop drawing after the last part."""
        self._drawn = list(parts)
        if not parts:
            self.stop()

    def stop(self) -> None:
        """Remove the bars."""
        self._drawn = []
        if self._live is not None:
            self._live.stop()
            self._live = None
            if self._others_had_bars and (others := _transformers_bars()) is not None:
                others.enable_progress_bar()

    def _bars(self) -> RenderableType:
        table = Table.grid(padding=(0, 1))
        table.add_column(no_wrap=True, overflow="ellipsis")
        for _ in range(3):
            table.add_column(no_wrap=True, justify="right")
        table.add_column(no_wrap=True)
        drawn = [part for place, part in enumerate(self._drawn) if not place or part.seconds > _SETTLES]
        for place, part in enumerate(drawn):
            table.add_row(
                ("  " * place) + part.title,
                ProgressBar(part.total or 1, part.done, width=_BAR),
                _position(part),
                _clock(part.seconds),
                "" if part.seconds_left is None else f"{_clock(part.seconds_left)} left",
            )
        # On the bar's line, the numbers would squeeze step and time off a narrow terminal.
        notes = [Text(f"  {part.note}", style="dim") for part in drawn if part.note]
        return Group(table, *notes)


def _transformers_bars() -> Any:
    """The module that turns the bars of transformers on and off. None where transformers is not loaded."""
    return sys.modules.get("transformers.utils.logging")


def line_of(parts: list[Part]) -> str:
    """The open parts in one line: `training, step 3 of 80: rollout 45 %, about 1 min left`."""
    *outer, last = parts
    titles = [
        f"{part.title}, step {part.done:.0f} of {part.total:.0f}" if part.unit == STEPS else part.title
        for part in outer
    ]
    left = "" if not last.seconds_left else f", about {duration(last.seconds_left)} left"
    place = f"{last.done:.0f} of {last.total:.0f}" if last.unit == STEPS else f"{100 * last.share:.0f} %"
    return ": ".join([*titles, f"{last.title} {place}{left}"])


def _position(part: Part) -> str:
    return f"{part.done:.0f}/{part.total:.0f}" if part.unit == STEPS else f"{100 * part.share:.0f} %"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"


_shown: ProgressDisplay | None = None


@contextmanager
def showing(main_process: bool = True, *, bars: bool = True) -> Iterator[None]:
    """Show the progress of the block. Nothing changes where it is shown already; other processes than the first show nothing.

    `bars`: whether a terminal gets bars. Without them it gets lines, as a pipe does.
    """
    global _shown
    if progress.is_shown() or not main_process:
        yield
        return
    _shown = ProgressDisplay(bars=bars)
    progress.set_display(_shown)
    try:
        yield
    finally:
        progress.set_display(None)
        _shown.stop()
        _shown = None


def has_bars() -> bool:
    """Whether progress is shown as bars."""
    return _shown is not None and _shown.has_bars


def say(text: str) -> None:
    """Print a line beside the progress, if it is shown."""
    if _shown is not None:
        _shown.say(text)
