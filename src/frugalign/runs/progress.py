"""What long work says on stderr: its size at the start, the pace after its first part, and a training's numbers."""

from __future__ import annotations

import time
from typing import Any

from transformers import (
    PrinterCallback,
    ProgressCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from frugalign.base import progress
from frugalign.base.progress import STEPS, Part
from frugalign.base.progress_display import has_bars, say
from frugalign.base.quantities import duration, in_short
from frugalign.base.wording import pluralize


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
        if not has_bars() or state.global_step >= state.max_steps:
            say(f"{self.title}: step {state.global_step} of {state.max_steps} · {numbers}")

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self._part is not None:
            progress.close_part(self._part)
            self._part = None
