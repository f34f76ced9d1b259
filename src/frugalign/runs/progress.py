"""Show progress on stderr: bars on a terminal; in a file or a pipe, a plain line now and then.

`frugalign.base.progress` says what is in progress. Here it is drawn, together with the size of the work at its start and the
time that the rest takes.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text
from transformers import (
    PrinterCallback,
    ProgressCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.utils import logging

from frugalign.base import progress
from frugalign.base.progress import STEPS, Part
from frugalign.base.quantities import duration, in_short
from frugalign.base.terminal import console
from frugalign.base.wording import pluralize

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
            self._others_had_bars = logging.is_progress_bar_enabled()
            logging.disable_progress_bar()  # of transformers, whose own bars would break these
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
            if self._others_had_bars:
                logging.enable_progress_bar()

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


def line_of(parts: list[Part]) -> str:
    """The open parts in one line: `training, step 3 of 80: rollout 45 %, about 1 min left`."""
    *outer, last = parts
    titles = [
        f"{part.title}, step {part.done:.0f} of {part.total:.0f}" if part.unit == STEPS else part.title
        for part in outer
    ]
    left = "" if last.seconds_left is None else f", about {duration(last.seconds_left)} left"
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


def say(text: str) -> None:
    """Print a line beside the progress, if it is shown."""
    if _shown is not None:
        _shown.say(text)


def say_size(sampled: float, fed: float, how: str) -> None:
    """Say how much there is to do.

    Args:
        sampled: an upper bound of the tokens to sample; 0: none.
        fed: tokens to feed to the model, estimated with responses of full length.
        how: the factors, such as `30 rollouts of 512 responses`.
    """
    parts = [f"at most {in_short(sampled)} tokens to sample"] if sampled else []
    parts += [f"about {in_short(fed)} to feed" if parts else f"about {in_short(fed)} tokens to feed"] if fed else []
    if parts:
        text = ", ".join(parts)
        say(f"{text[0].upper()}{text[1:]}: {how}.")


class Pace:
    """Says once, after the first of several equal parts, how long the others take.

    `noun`: such as round. `at_once`: how many run at the same time.
    """

    def __init__(self, noun: str, at_once: int = 1) -> None:
        self.noun, self.at_once = noun, at_once
        self._began, self._said = time.monotonic(), False

    def finished(self, first: str, left: int) -> None:
        """A part has finished and `left` more are to come. `first`: the part, at the head of the sentence."""
        if self._said or left <= 0:
            return
        self._said = True
        seconds = time.monotonic() - self._began
        verb = "takes" if left == 1 else "take"
        rest = duration(seconds * -(-left // self.at_once))
        say(f"{first} took {duration(seconds)}; {pluralize(left, 'more ' + self.noun)} {verb} about {rest}.")


class TrainingProgress(TrainerCallback):
    """A training as a part in progress, with the latest values of `shown`. In a file or a pipe, one line per log entry.

    `per_unit`: optimiser steps of one `unit`, such as a rollout. After the first one, it says how long the others take;
    None: it does not.
    """

    def __init__(self, title: str, shown: tuple[str, ...], unit: str | None = "step", per_unit: int = 1) -> None:
        self.title, self.shown, self.unit, self.per_unit = title, shown, unit, per_unit
        self._part: Part | None = None
        self._pace: Pace | None = None

    def replace_defaults(self, trainer: Trainer) -> None:
        """Take the place of the callbacks that print dictionaries."""
        trainer.remove_callback(PrinterCallback)
        trainer.remove_callback(ProgressCallback)
        trainer.add_callback(self)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if not state.is_world_process_zero:
            return
        self._part = Part(self.title, state.max_steps, STEPS, before=state.global_step)
        self._pace = None if self.unit is None else Pace(self.unit)
        progress.open_part(self._part)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self._part is None:
            return
        progress.set_done(self._part, state.global_step)
        if self._pace is not None and self._part.done - self._part.before >= self.per_unit:
            left = -(-(state.max_steps - state.global_step) // self.per_unit)
            self._pace.finished(f"{self.title}: the first {self.unit}", left)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        numbers = " · ".join(f"{name} {float(logs[name]):.3g}" for name in self.shown if logs and name in logs)
        if not numbers or not state.is_world_process_zero:
            return
        if self._part is not None:
            progress.set_done(self._part, state.global_step, numbers)
        if _shown is None or not _shown.has_bars or state.global_step >= state.max_steps:
            say(f"{self.title}: step {state.global_step} of {state.max_steps} · {numbers}")

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self._part is not None:
            progress.close_part(self._part)
            self._part = None
