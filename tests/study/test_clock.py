"""The clock of a budget."""

from types import SimpleNamespace
from typing import Any

import pytest

from frugalign.study.clock import StopAfter


def test_the_clock_stops_a_training(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("frugalign.study.clock.time.perf_counter", lambda: now[0])
    stop, control = StopAfter(130.0), SimpleNamespace(should_training_stop=False)
    anything: Any = None
    stop.on_step_end(anything, anything, control)  # type: ignore[arg-type]
    assert not control.should_training_stop and not stop.ran_out
    now[0] = 130.0
    stop.on_step_end(anything, anything, control)  # type: ignore[arg-type]
    assert control.should_training_stop and stop.ran_out
