"""The one exit to the terminal. Text of models, files and servers passes it with its control characters written out.

`guarded` wraps standard output and standard error. Everything that writes through them is covered: `print`, logs,
warnings, tracebacks. Colours and bars are drawn by `console`, which writes out the characters of its texts and then adds its own.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TextIO

from frugalign.base.wording import visible

if TYPE_CHECKING:
    from rich.console import Console

_CURSOR_UP = "\x1b[A"
_STREAMS = ("stdout", "stderr")


class GuardedStream:
    """A text stream that writes control characters out, in a pipe as in a terminal.

    Args:
        bars: let progress bars of other libraries through: a carriage return at the start of a write, and writes that
            only move the cursor.
    """

    def __init__(self, raw: TextIO, *, bars: bool = False) -> None:
        self.raw, self._bars = raw, bars

    def write(self, text: str) -> int:
        """Write the text, with what the encoding lacks as escapes too."""
        lead = ""
        if self._bars:
            rest = text.lstrip("\r\n") if text.startswith("\r") else text
            lead, text = text[: len(text) - len(rest)], rest
            if text and not text.replace(_CURSOR_UP, "").strip("\n"):
                lead, text = lead + text, ""
        self.raw.write(lead + _printable(text, self.raw))
        return len(lead) + len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        """Write every line."""
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.raw, name)


@contextmanager
def guarded() -> Iterator[None]:
    """Guard standard output and standard error inside the block."""
    before = {name: getattr(sys, name) for name in _STREAMS}
    for name, stream in before.items():
        if stream is not None and not isinstance(stream, GuardedStream):
            setattr(sys, name, GuardedStream(stream, bars=name == "stderr"))
    try:
        yield
    finally:
        for name, stream in before.items():
            setattr(sys, name, stream)


def print_traceback(kind: Any, error: BaseException, trace: Any) -> None:
    """An exception hook: a bug's traceback may quote text of a model or a file too."""
    GuardedStream(sys.stderr).write("".join(traceback.format_exception(kind, error, trace)))


def console(*, stderr: bool = False) -> Console:
    """A rich console on standard output or standard error. Texts are printed as they are: no markup, no emoji codes, no
    colours of their own."""
    from rich.console import Console
    from rich.segment import Segment

    class GuardedConsole(Console):
        def _render_buffer(self, buffer: Iterable[Segment]) -> str:
            return super()._render_buffer(
                part if part.control else Segment(_printable(part.text, self.file), part.style) for part in buffer
            )

    stream: Any = sys.stderr if stderr else sys.stdout
    return GuardedConsole(file=getattr(stream, "raw", stream), highlight=False, markup=False, emoji=False)


def _printable(text: str, stream: Any) -> str:
    """The visible text, with escapes for what the stream's encoding lacks."""
    encoding = getattr(stream, "encoding", None) or "utf-8"
    return visible(text).encode(encoding, "backslashreplace").decode(encoding)
