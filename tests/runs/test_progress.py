"""Progress on stderr: bars for a terminal, plain lines elsewhere, the size of the work and the time that it takes."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

import pytest
from rich.console import Console
from transformers import TrainerControl, TrainerState, TrainingArguments

from frugalign.base import progress
from frugalign.base import progress_display as shown_progress
from frugalign.base.progress import SAMPLED, STEPS, Part, advance, open_part, set_display, work
from frugalign.base.progress_display import ProgressDisplay, line_of, say, showing
from frugalign.runs.progress import Pace, TrainingProgress, say_size


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    """The time, in the only entry."""
    now = [1000.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    yield now


def display(
    monkeypatch: pytest.MonkeyPatch, *, terminal: bool, bars: bool = True
) -> tuple[ProgressDisplay, io.StringIO]:
    """A display of 80 columns in the place of stderr's."""
    out = io.StringIO()
    found = ProgressDisplay(Console(file=out, force_terminal=terminal, width=80, highlight=False), bars=bars)
    monkeypatch.setattr(shown_progress, "_shown", found)
    monkeypatch.setattr(progress, "_display", found)
    monkeypatch.setattr(progress, "_parts", [])
    return found, out


def trained(tmp_path: Any, training: TrainingProgress, *, main_process: bool = True) -> None:
    """Eight steps, resumed after two, with numbers at steps 4 and 8."""
    args = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, disable_tqdm=False)
    state, control = TrainerState(max_steps=8, global_step=2, is_world_process_zero=main_process), TrainerControl()
    training.on_train_begin(args, state, control)
    for state.global_step in range(3, 9):
        training.on_step_end(args, state, control)
        if state.global_step % 4 == 0:
            training.on_log(args, state, control, logs={"reward": 0.12345, "kl": 3.0, "epoch": 1.0})
            training.on_log(args, state, control, logs={"epoch": 1.0})
    training.on_train_end(args, state, control)


def test_a_pipe_gets_the_pace_and_one_plain_line_per_log(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch, clock: list[float]
) -> None:
    _, out = display(monkeypatch, terminal=False)
    trained(tmp_path, TrainingProgress("training", ("reward", "kl"), "rollout", 2))
    assert out.getvalue().splitlines() == [
        "training: the first rollout took 0.0 s; 2 more rollouts take about 0.0 s.",
        "training: step 4 of 8 · reward 0.123 · kl 3",
        "training: step 8 of 8 · reward 0.123 · kl 3",
    ]  # fmt: skip


def test_a_training_that_is_one_part_of_several_says_no_pace(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    _, out = display(monkeypatch, terminal=False)
    trained(tmp_path, TrainingProgress("round 0", ("reward",), unit=None))
    assert out.getvalue().startswith("round 0: step 4 of 8")


def test_a_terminal_keeps_the_last_numbers_only(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    _, out = display(monkeypatch, terminal=True)
    trained(tmp_path, TrainingProgress("training", ("reward", "kl")))
    assert "step 8 of 8 · reward 0.123" in out.getvalue() and "step 4 of 8" not in out.getvalue()


def test_other_processes_are_silent(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    _, out = display(monkeypatch, terminal=True)
    trained(tmp_path, TrainingProgress("training", ("reward",)), main_process=False)
    assert out.getvalue() == ""
    monkeypatch.setattr(progress, "_display", None)
    with showing(False):
        assert not progress.is_shown()


def test_the_bars_fit_eighty_columns_and_say_step_and_time(monkeypatch: pytest.MonkeyPatch, clock: list[float]) -> None:
    found, _ = display(monkeypatch, terminal=True)
    outer = Part("training the proxy", 960, STEPS, before=0)
    outer.done, outer.note = 12, "reward 0.123 · kl 3.21 · beta 0.05 · acceptance 0.99 · eval_reward 0.2 · eval_kl 3"
    inner = Part("rollout", 1000, SAMPLED)
    inner.done = 250
    clock[0] += 60
    found._drawn = [outer, inner]
    page = io.StringIO()
    Console(file=page, width=80).print(found._bars())
    first, second, note, more = page.getvalue().splitlines()
    assert "training the proxy" in first and "12/960" in first and "0:01:00" in first and "1:19:00 left" in first
    assert "rollout" in second and "25 %" in second and "0:03:00 left" in second
    assert note.startswith("  reward 0.123 · kl 3.21") and "eval_kl 3" in more
    assert max(map(len, page.getvalue().splitlines())) <= 80


def test_a_short_part_inside_another_is_not_drawn(monkeypatch: pytest.MonkeyPatch, clock: list[float]) -> None:
    found, _ = display(monkeypatch, terminal=True)
    found._drawn = [Part("training", 8, STEPS), Part("rollout", 10, SAMPLED)]
    page = io.StringIO()
    Console(file=page, width=80).print(found._bars())
    assert "training" in page.getvalue() and "rollout" not in page.getvalue()


def test_a_pipe_gets_a_line_after_ten_seconds_and_then_every_thirty(
    monkeypatch: pytest.MonkeyPatch, clock: list[float]
) -> None:
    _, out = display(monkeypatch, terminal=False)
    open_part(Part("training", 8, STEPS))
    with work("rollout", 100, SAMPLED):
        for _ in range(50):
            clock[0] += 1
            advance(SAMPLED)
    assert out.getvalue().splitlines() == [
        "training, step 0 of 8: rollout 10 %, about 1 min 30 s left",
        "training, step 0 of 8: rollout 40 %, about 1 min left",
    ]


def test_a_line_of_one_part() -> None:
    assert line_of([Part("hidden states", 10, SAMPLED)]) == "hidden states 0 %"
    assert line_of([Part("cells", 3, STEPS, before=1)]) == "cells 1 of 3"


def test_bars_can_be_turned_off(monkeypatch: pytest.MonkeyPatch) -> None:
    found, out = display(monkeypatch, terminal=True, bars=False)
    with work("rollout", 100, SAMPLED):
        assert found._live is None
    assert out.getvalue() == ""


def test_the_bars_are_gone_after_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    found, _ = display(monkeypatch, terminal=True)
    with pytest.raises(KeyError), work("rollout", 100, SAMPLED):
        assert found._live is not None
        raise KeyError
    assert found._live is None


def test_showing_inside_showing_changes_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with showing():
        outer = shown_progress._shown
        with showing():
            assert shown_progress._shown is outer
        assert progress.is_shown()
        say("a line")
    assert not progress.is_shown() and capsys.readouterr().err == "a line\n"
    say("nobody hears this")
    assert capsys.readouterr().err == ""


def test_the_size_of_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """30 rollouts of 512 responses of 256 tokens: 3.9 million."""
    _, out = display(monkeypatch, terminal=False)
    say_size(30 * 512 * 256, 5.1e6, "30 rollouts")
    say_size(0, 12_000, "400 answers")
    say_size(512, 0, "8 prompts")
    say_size(0, 0, "nothing")
    assert out.getvalue().splitlines() == [
        "At most 3.9 M tokens to sample, about 5.1 M to feed: 30 rollouts.",
        "About 12 k tokens to feed: 400 answers.",
        "At most 512 tokens to sample: 8 prompts.",
    ]


def test_the_pace_is_said_once_and_of_several_at_a_time(monkeypatch: pytest.MonkeyPatch, clock: list[float]) -> None:
    """The first of 6 took 120 s. Two run at a time, so the other 5 take 3 × 120 s."""
    _, out = display(monkeypatch, terminal=False)
    pace = Pace("cell", at_once=2)
    clock[0] += 120
    pace.finished("The first cell", 5)
    pace.finished("The second cell", 4)
    Pace("cell").finished("The only cell", 0)
    Pace("round").finished("Round 0", 1)
    assert out.getvalue().splitlines() == [
        "The first cell took 2 min; 5 more cells take about 6 min.",
        "Round 0 took 0.0 s; 1 more round takes about 0.0 s.",
    ]


def test_a_display_that_is_taken_away_forgets_its_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    display(monkeypatch, terminal=False)
    open_part(Part("training", 8, STEPS))
    set_display(None)
    assert not progress._parts
