"""Experiment trackers (`--report_to`), through transformers' own callbacks.

`log_table` adds what those cannot send: a table of sample responses. `Trackers` serves a run that is not one training by Trainer, such
as the rounds of PSLE, so that it is one run in the tracker.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.integrations.integration_utils import get_reporting_integration_callbacks

_TABLE = "completions"
_SUMMARY = "train_loss"
Rows = Sequence[Mapping[str, Any]]


def log_table(callbacks: Iterable[TrainerCallback], rows: Rows, step: int) -> None:
    """Send rows with the same columns as the table `completions`, as TRL's `log_completions` does.

    Wandb, trackio, MLflow and TensorBoard take tables; other callbacks are left alone. Called by the first process only.
    """
    if not rows:
        return
    columns: dict[str, list[Any]] = {"step": [step] * len(rows)}
    columns |= {name: [_cell(row.get(name)) for row in rows] for name in rows[0] if name != "step"}
    for callback in callbacks:
        for kind in type(callback).__mro__:
            if send := _SENDERS.get(kind.__name__):
                send(callback, columns, step)
                break


def _cell(value: Any) -> Any:
    """A number, a text or nothing. Conversations become JSON."""
    plain = value is None or isinstance(value, (str, int, float))
    return value if plain else json.dumps(value, ensure_ascii=False, default=str)


def _to_wandb(callback: Any, columns: dict[str, list[Any]], step: int) -> None:
    import wandb

    if wandb.run is not None:
        rows = [list(row) for row in zip(*columns.values(), strict=True)]
        wandb.log({_TABLE: wandb.Table(columns=list(columns), data=rows), "train/global_step": step})


def _to_trackio(callback: Any, columns: dict[str, list[Any]], step: int) -> None:
    import pandas
    import trackio

    trackio.log({_TABLE: trackio.Table(dataframe=pandas.DataFrame(columns)), "train/global_step": step})


def _to_mlflow(callback: Any, columns: dict[str, list[Any]], step: int) -> None:
    import mlflow

    if mlflow.active_run() is not None:
        mlflow.log_table(columns, f"{_TABLE}.json")  # rows of an earlier step stay in the file


def _to_tensorboard(callback: Any, columns: dict[str, list[Any]], step: int) -> None:
    if callback.tb_writer is None:
        return
    lines = [list(columns), ["---"] * len(columns), *zip(*columns.values(), strict=True)]
    cells = [[" ".join(str(value).split()).replace("|", "\\|") for value in line] for line in lines]
    callback.tb_writer.add_text(_TABLE, "\n".join(f"| {' | '.join(line)} |" for line in cells), step)


_SENDERS: Mapping[str, Callable[[Any, dict[str, list[Any]], int], None]] = {
    "WandbCallback": _to_wandb,
    "TrackioCallback": _to_trackio,
    "MLflowCallback": _to_mlflow,
    "TensorBoardCallback": _to_tensorboard,
}
"""By the names of transformers' callbacks."""


class Trackers:
    """The trackers that `args.report_to` names, over a run that consists of several trainings, or of none.

    Every process may call it. Only the first one has trackers.
    """

    def __init__(self, args: TrainingArguments) -> None:
        self.args = args
        names: Any = args.report_to
        self.callbacks: list[TrainerCallback] = []
        if args.process_index == 0:
            self.callbacks = [callback() for callback in get_reporting_integration_callbacks(names)]

    def begin(self, model: Any) -> None:
        """Start the run. `model`: what is trained; its config and size are noted."""
        for callback in self.callbacks:
            callback.on_train_begin(self.args, TrainerState(), TrainerControl(), model=model)

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Send the values of a step. Their names are as in Trainer: `eval_` marks a measure on held-out data."""
        state = TrainerState(global_step=step)
        for callback in self.callbacks:
            callback.on_log(self.args, state, TrainerControl(), logs=dict(values))

    def log_table(self, rows: Rows, step: int) -> None:
        """`log_table` to these trackers."""
        log_table(self.callbacks, rows, step)

    def end(self) -> None:
        """Finish the run."""
        for callback in self.callbacks:
            callback.on_train_end(self.args, TrainerState(), TrainerControl())


class PartOfARun(TrainerCallback):
    """Passes the log of one of several trainings on to the run's trackers. `before`: the optimiser steps of the earlier ones."""

    def __init__(self, trackers: Trackers, before: int) -> None:
        self.trackers, self.before = trackers, before

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if logs is not None and _SUMMARY not in logs:
            self.trackers.log(logs, self.before + state.global_step)
