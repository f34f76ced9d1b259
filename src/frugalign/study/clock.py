"""The clock of a budget: it stops a training at the end of a step."""

from __future__ import annotations

import time
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments


class StopAfter(TrainerCallback):
    """Ends a training when its clock runs out, at the end of a step. `deadline`: of `time.perf_counter`."""

    def __init__(self, deadline: float) -> None:
        self.deadline = deadline

    @property
    def ran_out(self) -> bool:
        """Whether nothing more is to begin; a trainer that works in rounds looks between them."""
        return time.perf_counter() >= self.deadline

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self.ran_out:
            control.should_training_stop = True
