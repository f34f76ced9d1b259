"""Progress: plain lines where nobody watches, one bar with numbers where somebody does."""

from __future__ import annotations

import io
import re
from typing import Any

from rich.console import Console
from transformers import TrainerControl, TrainerState, TrainingArguments

from frugalign.runs.progress import TrainingProgress


def shown(
    tmp_path: Any, *, terminal: bool, main_process: bool = True, width: int = 100, logs: dict[str, float] | None = None
) -> str:
    logs = logs or {"reward": 0.12345, "kl": 3.0, "epoch": 1.0}
    progress, out = (
        TrainingProgress("training the proxy", tuple(name for name in logs if name != "epoch")),
        io.StringIO(),
    )
    progress.console = Console(file=out, force_terminal=terminal, width=width)
    args = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, disable_tqdm=False)
    state = TrainerState(max_steps=8, global_step=2, is_world_process_zero=main_process)
    control = TrainerControl()
    progress.on_train_begin(args, state, control)
    progress.on_step_end(args, state, control)
    progress.on_log(args, state, control, logs=logs)
    progress.on_log(args, state, control, logs={"epoch": 1.0})
    progress.on_train_end(args, state, control)
    return out.getvalue()


def test_a_pipe_gets_one_plain_line_per_log(tmp_path: Any) -> None:
    assert shown(tmp_path, terminal=False) == "training the proxy: step 2 of 8 · reward 0.123 · kl 3\n"


def test_a_terminal_gets_a_bar_with_the_newest_numbers(tmp_path: Any) -> None:
    text = shown(tmp_path, terminal=True)
    assert "2/8" in text and "reward 0.123" in text and "step 2 of 8" not in text


def test_step_and_time_stay_on_a_terminal_of_80_columns(tmp_path: Any) -> None:
    """However many numbers there are: they have their own line."""
    logs = {f"representation_reward/measure_{number}": 0.123 for number in range(6)}
    text = shown(tmp_path, terminal=True, width=80, logs=logs)
    assert re.search(r"training the proxy .* 2/8 0:00:00 (-:--:--|0:00:00)", re.sub(r"\x1b\[[\d;?]*\w", "", text))
    assert "measure_5 0.123" in text


def test_other_processes_are_silent(tmp_path: Any) -> None:
    for terminal in (False, True):
        assert shown(tmp_path, terminal=terminal, main_process=False) == ""
