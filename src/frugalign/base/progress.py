"""Progress of slow work. Loops report what they have done; whoever shows it knows what there is to do.

A loop calls `advance(unit, n)`. A caller that knows the total opens a `part` around it. `frugalign.base.progress_display` shows the
open parts on stderr. Where nothing is shown, all of this does nothing.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol

SAMPLED = "tokens sampled"
"""A response counts as its longest length, so that one that ends early is done at once."""
FED = "tokens fed"
SCORED = "responses scored"
FITTED = "iterations"
STEPS = "steps"
READ = "bytes read"
ENCODED = "rows encoded"


@dataclass(eq=False)
class Part:
    """Work in progress: `done` of `total`. `before` was done when it opened, as in a resumed run. `note`: further numbers."""

    title: str
    total: float
    unit: str
    before: float = 0.0
    note: str = ""
    done: float = 0.0
    began: float = field(default_factory=lambda: time.monotonic())

    def __post_init__(self) -> None:
        self.done = self.before

    @property
    def share(self) -> float:
        """The share that is done, from 0 to 1."""
        return min(1.0, self.done / self.total) if self.total else 1.0

    @property
    def seconds(self) -> float:
        """Seconds since it opened."""
        return time.monotonic() - self.began

    @property
    def seconds_left(self) -> float | None:
        """Seconds until it is finished at its pace so far; None before it has one."""
        finished = self.done - self.before
        return self.seconds / finished * max(0.0, self.total - self.done) if finished > 0 else None


class Display(Protocol):
    """Shows parts. `parts` are the open ones, the outermost first."""

    def opened(self, parts: list[Part]) -> None:
        """The last part has opened."""

    def moved(self, parts: list[Part]) -> None:
        """A part has advanced."""

    def closed(self, parts: list[Part], part: Part) -> None:
        """`part` has closed."""


_display: Display | None = None
_parts: list[Part] = []


def set_display(display: Display | None) -> Display | None:
    """Show parts on `display` from now on; None shows nothing. Returns the display before. Open parts are forgotten."""
    global _display
    before, _display = _display, display
    _parts.clear()
    return before


def is_shown() -> bool:
    """Whether there is a display."""
    return _display is not None


def open_part(part: Part) -> None:
    """Show a part inside the ones that are open already."""
    if _display is not None:
        _parts.append(part)
        _display.opened(_parts)


def close_part(part: Part) -> None:
    """End a part and all parts inside it."""
    if _display is not None and part in _parts:
        del _parts[_parts.index(part) :]
        _display.closed(_parts, part)


@contextmanager
def work(title: str, total: float, unit: str) -> Iterator[Part]:
    """Show the block as a part of `total` units."""
    part = Part(title, total, unit)
    open_part(part)
    try:
        yield part
    finally:
        close_part(part)


def advance(unit: str, n: float = 1) -> None:
    """`n` more units are done, of the innermost part that counts them."""
    if _display is None or not _parts:
        return
    for part in reversed(_parts):
        if part.unit == unit:
            part.done += n
            break
    _display.moved(_parts)


def set_done(part: Part, done: float, note: str | None = None) -> None:
    """Set what is done of a part, and its note."""
    part.done = done
    if note is not None:
        part.note = note
    if _display is not None and part in _parts:
        _display.moved(_parts)
