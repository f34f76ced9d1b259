"""Training progress: a bar in a terminal, plain lines in a file or a pipe."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rich.console import RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
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

from frugalign.base.terminal import console


class _BarAndNumbers(Progress):
    """A bar, and below it the newest numbers: on one line, they would squeeze step and time off a narrow terminal."""

    def get_renderables(self) -> Iterable[RenderableType]:
        yield from super().get_renderables()
        for task in self.tasks:
            if task.fields["numbers"]:
                yield Text(f"  {task.fields['numbers']}")


class TrainingProgress(TrainerCallback):
    """A progress bar with the latest values of `shown`; in a file or a pipe, one line per log entry."""

    def __init__(self, title: str, shown: tuple[str, ...]) -> None:
        self.title, self.shown = title, shown
        self.console = console(stderr=True)
        self._bar: Progress | None = None

    def replace_defaults(self, trainer: Trainer) -> None:
        """Take the place of the callbacks that print dictionaries."""
        trainer.remove_callback(PrinterCallback)
        trainer.remove_callback(ProgressCallback)
        trainer.add_callback(self)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if not (state.is_world_process_zero and self.console.is_terminal) or args.disable_tqdm:
            return
        self._bar = _BarAndNumbers(
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=self.console,
        )
        self._task = self._bar.add_task(self.title, total=state.max_steps, completed=state.global_step, numbers="")
        self._bar.start()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self._bar is not None:
            self._bar.update(self._task, completed=state.global_step)

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
        if self._bar is not None:
            self._bar.update(self._task, numbers=numbers)
        else:
            self.console.print(
                f"{self.title}: step {state.global_step} of {state.max_steps} · {numbers}",
                highlight=False,
                soft_wrap=True,
            )

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
