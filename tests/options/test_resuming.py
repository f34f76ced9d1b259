"""What counts as resuming a run."""

from __future__ import annotations

import pytest

from frugalign.options.resuming import MAY_CHANGE, START_OPTIONS, is_resuming


@pytest.mark.parametrize("wanted", ["true", "True", True, "runs/a/checkpoint-3"])
def test_a_folder_or_true_resumes(wanted: str | bool) -> None:
    assert is_resuming(wanted)


@pytest.mark.parametrize("wanted", [None, "", "false", False, "none", "None"])
def test_nothing_and_false_do_not(wanted: str | bool | None) -> None:
    assert not is_resuming(wanted)


def test_a_resumed_run_may_move_to_another_machine_but_not_learn_otherwise() -> None:
    assert {"output_dir", "use_cpu", "max_steps", "logging_steps"} | START_OPTIONS <= MAY_CHANGE
    assert not MAY_CHANGE & {"learning_rate", "seed", "beta", "temperature", "lora_r", "num_generations"}
