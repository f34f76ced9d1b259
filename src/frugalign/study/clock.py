"""A time budget: it stops a training at the end of a step."""

from __future__ import annotations

import time
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments


class StopAfter(TrainerCallback):
    """Stops a training at the end of the first step after `deadline`, a time of `time.perf_counter`."""

    def __init__(self, deadline: float) -> None:
        self.deadline = deadline

    @property
    def ran_out(self) -> bool:
        """Whether the time is spent. A trainer that works in rounds checks this between them."""
        return time.perf_counter() >= self.deadline

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self.ran_out:
            control.should_training_stop = True
