"""The thread that runs the model: queue, time, cancellation, failures and the end, on an engine of two tables."""

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from tests.engines.table_engine import TableEngine
from tests.serving.test_text import Bytes
from torch import Tensor

from frugalign.decoding.chooser import draw_token
from frugalign.decoding.continuous import ContinuousBatch, Row
from frugalign.decoding.noise import Noise
from frugalign.proxy.mixed import RowChoice
from frugalign.serving.errors import RequestError
from frugalign.serving.metrics import Metrics
from frugalign.serving.scheduler import Answer, Event, Job, Piece, Scheduler
from frugalign.serving.settings import ServerSettings
from frugalign.serving.text import TextStream


class Gate:
    """A chooser that waits until it may go on, and fails on demand."""

    def __init__(self) -> None:
        self.open, self.fails, self.rows = threading.Event(), False, 0
        self.open.set()

    def __call__(self, h: Tensor, logits: Tensor, rows: Sequence[Row], noise: Noise) -> list[RowChoice]:
        assert self.open.wait(20)
        self.rows = len(rows)
        if self.fails:
            raise RuntimeError("out of memory")
        return [RowChoice(int(token) + 97) for token in draw_token(logits, noise)]


class Engine(TableEngine):
    """Its vocabulary is of the letters a to w, so that answers are text."""

    end_token_ids = ()

    def feed(self, state: int, tokens: Sequence[int]) -> int:
        return super().feed(state, [token % 23 for token in tokens])


class Asker:
    """A client of a scheduler."""

    def __init__(self, scheduler: Scheduler) -> None:
        self.scheduler, self.events, self.changed = scheduler, list[Event](), threading.Condition()

    def ask(self, n: int = 1, length: int = 5, seconds: float = 60.0, stop: tuple[str, ...] = ()) -> Job:
        rows = [Row([5, 6], key, length) for key in range(n)]
        self.job = Job([Answer(row, TextStream(Bytes(), stop)) for row in rows], self.take, seconds)  # type: ignore[arg-type]
        self.scheduler.submit(self.job)
        return self.job

    def take(self, event: Event) -> None:
        with self.changed:
            self.events.append(event)
            self.changed.notify_all()

    def wait(self, fits: Callable[[list[Event]], Any]) -> list[Event]:
        with self.changed:
            assert self.changed.wait_for(lambda: fits(self.events), 20), self.events
        return self.events

    def answers(self) -> list[tuple[str, str | None]]:
        """Text and end of every answer."""
        n = len(self.job.answers)
        events = self.wait(
            lambda found: sum(isinstance(each, Piece) and each.finish is not None for each in found) == n
        )
        pieces = [each for each in events if isinstance(each, Piece)]
        own = [[each for each in pieces if each.index == index] for index in range(n)]
        return [("".join(each.text for each in part), part[-1].finish) for part in own]


@pytest.fixture
def gate() -> Gate:
    return Gate()


@pytest.fixture
def scheduler(gate: Gate) -> Any:
    settings = ServerSettings(max_batch_size=3, max_queue=2)
    found = Scheduler(ContinuousBatch(Engine(), gate), settings, Metrics())
    found.start()
    yield found
    gate.open.set()
    found.stop()


def value(scheduler: Scheduler, name: str) -> float:
    lines = scheduler.metrics.text().decode().splitlines()
    return float(next(line.split()[1] for line in lines if line.startswith(f"frugalign_{name} ")))


def test_answers_arrive_token_by_token_and_are_counted(scheduler: Scheduler) -> None:
    asker = Asker(scheduler)
    asker.ask(n=2, length=4)
    assert [(len(text), finish) for text, finish in asker.answers()] == [(4, "length")] * 2
    asker.scheduler.stop(5)
    assert value(scheduler, "completion_tokens_total") == 8 and value(scheduler, "prompt_tokens_total") == 2
    assert value(scheduler, "running") == value(scheduler, "waiting") == 0
    assert value(scheduler, "first_token_seconds_count") == 2 and value(scheduler, "next_token_seconds_count") == 6


def test_a_stop_sequence_ends_the_row(scheduler: Scheduler) -> None:
    whole, cut = Asker(scheduler), Asker(scheduler)
    whole.ask(length=8)
    ((text, _),) = whole.answers()
    cut.ask(length=8, stop=(text[3:5],))
    assert cut.answers() == [(text[: text.index(text[3:5])], "stop")]


def test_a_full_queue_refuses_and_says_when_to_come_back(scheduler: Scheduler, gate: Gate) -> None:
    gate.open.clear()
    askers = [Asker(scheduler) for _ in range(3)]
    askers[0].ask(n=3)
    while value(scheduler, "running") < 3:  # its prompt is being fed
        time.sleep(0.01)
    for asker in askers[1:]:
        asker.ask()
    with pytest.raises(RequestError) as raised:
        Asker(scheduler).ask()
    assert raised.value.status == 429 and 1 <= (raised.value.retry_after or 0) <= 60
    with pytest.raises(RequestError, match="at most 3 answers"):
        Asker(scheduler).ask(n=4)
    gate.open.set()
    assert all(asker.answers()[0][1] == "length" for asker in askers), "those that waited are answered"


def test_a_client_that_leaves_frees_its_place(scheduler: Scheduler) -> None:
    gone, late = Asker(scheduler), Asker(scheduler)
    job = gone.ask(n=3, length=10**6)
    gone.wait(lambda found: len(found) > 5)
    late.ask(n=2, length=3)
    scheduler.cancel(job)
    assert [finish for _, finish in late.answers()] == ["length"] * 2
    assert job.answers[0].row.finish == "cancelled" and value(scheduler, "cancelled_total") == 3


def test_time_cuts_a_running_answer_and_refuses_a_waiting_one(scheduler: Scheduler) -> None:
    running, waiting = Asker(scheduler), Asker(scheduler)
    running.ask(n=3, length=10**6, seconds=0.3)
    waiting.ask(seconds=0.05)
    (error,) = waiting.wait(len)
    assert isinstance(error, RequestError) and error.status == 503
    assert [finish for _, finish in running.answers()] == ["length"] * 3
    assert value(scheduler, "timed_out_total") == 4


def test_a_failed_pass_fails_its_answers_and_no_others(scheduler: Scheduler, gate: Gate) -> None:
    lost, next_one = Asker(scheduler), Asker(scheduler)
    lost.ask(n=2, length=10**6)
    lost.wait(len)
    gate.fails = True
    events = lost.wait(lambda found: isinstance(found[-1], RequestError))
    assert isinstance(events[-1], RequestError) and events[-1].status == 500
    gate.fails = False
    next_one.ask()
    assert next_one.answers()[0][1] == "length" and gate.rows == 1


def test_stopping_finishes_what_it_can_and_refuses_the_rest(gate: Gate) -> None:
    scheduler = Scheduler(ContinuousBatch(Engine(), gate), ServerSettings(), Metrics())
    scheduler.start()
    short, endless = Asker(scheduler), Asker(scheduler)
    short.ask(length=20)
    endless.ask(length=10**6)
    endless.wait(len)
    scheduler.drain(0.5)
    with pytest.raises(RequestError, match="stopping") as raised:
        Asker(scheduler).ask()
    assert raised.value.status == 503 and not scheduler.is_alive
    assert short.answers()[0][1] == "length"
    last = endless.wait(lambda found: isinstance(found[-1], RequestError))[-1]
    assert isinstance(last, RequestError) and last.status == 503
    scheduler.stop()
    assert not scheduler._thread.is_alive()


def test_a_client_whose_loop_is_closed_does_no_harm(scheduler: Scheduler) -> None:
    asker, other = Asker(scheduler), Asker(scheduler)

    def refuse(event: Event) -> None:
        raise RuntimeError("Event loop is closed")

    asker.take = refuse  # type: ignore[method-assign]
    asker.ask(length=10**6)
    other.ask()
    assert other.answers()[0][1] == "length"
