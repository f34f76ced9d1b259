"""One thread that runs the model: it admits waiting answers, steps the batch, and hands out tokens.

Jobs are submitted and cancelled from any thread. Events are handed to a job's `emit` in the scheduler's thread. A failed
forward pass fails the answers in it, and the thread goes on with the next ones.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from frugalign.decoding.continuous import ContinuousBatch, Row
from frugalign.proxy.mixed import RowChoice
from frugalign.serving.errors import RequestError
from frugalign.serving.metrics import Metrics
from frugalign.serving.settings import ServerSettings
from frugalign.serving.text import TextStream

_log = logging.getLogger(__name__)
_PREFILL_TOKENS = 4096
"""Prompt tokens that are fed at once, with padding, so that new prompts do not stall running answers for long."""
STOPPING = "The server is stopping."


@dataclass(frozen=True)
class Piece:
    """What one token adds to answer `index`: text that is certain, the choice, and at the end why it ended."""

    index: int
    text: str
    choice: RowChoice | None
    finish: str | None = None


Event = Piece | RequestError
"""A `RequestError` ends the whole job."""


@dataclass(eq=False)
class Answer:
    """One answer of a job."""

    row: Row
    text: TextStream
    last: float = 0.0


@dataclass(eq=False)
class Job:
    """A request in the scheduler: its answers and where their events go."""

    answers: list[Answer]
    emit: Callable[[Event], object]
    seconds: float
    arrived: float = field(default_factory=time.monotonic)
    cancelled: bool = False

    @property
    def deadline(self) -> float:
        return self.arrived + self.seconds

    @property
    def unfinished(self) -> list[tuple[int, Answer]]:
        return [(index, each) for index, each in enumerate(self.answers) if each.row.finish is None]


class Scheduler:
    """Runs jobs on a batch, first come, first served. `start` it, and `stop` it at the end."""

    def __init__(self, batch: ContinuousBatch, settings: ServerSettings, metrics: Metrics) -> None:
        self.batch, self.settings, self.metrics = batch, settings, metrics
        most = batch.engine.capabilities.max_rows
        self.places = min(settings.max_batch_size, most or settings.max_batch_size)
        self._wake = threading.Condition()
        self._waiting: deque[Job] = deque()
        self._running: list[Job] = []
        self._owners: dict[int, tuple[Job, int]] = {}
        self._deadline: float | None = None
        self._mean_seconds = 1.0
        self._thread = threading.Thread(target=self._run, name="scheduler", daemon=True)

    def start(self) -> None:
        """Begin to work."""
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        """Whether it works and takes jobs."""
        return self._thread.is_alive() and self._deadline is None

    def submit(self, job: Job) -> None:
        """Queue a job.

        Raises:
            RequestError: the queue is full, the server is stopping, or more answers than can ever run at once.
        """
        if len(job.answers) > self.places:
            raise RequestError(f"A request may have at most {self.places} answers here.", "n")
        with self._wake:
            if not self.is_alive:
                raise RequestError(STOPPING, status=503, retry_after=10)
            n_waiting = sum(len(each.answers) for each in self._waiting)
            if n_waiting + self._n_running + len(job.answers) > self.places + self.settings.max_queue:
                seconds = max(1, min(60, round(self._mean_seconds * (1 + n_waiting / self.places))))
                raise RequestError(
                    "The server's queue is full; try again later.", status=429, code="queue_full", retry_after=seconds
                )
            self._waiting.append(job)
            self._count()
            self._wake.notify()

    def cancel(self, job: Job) -> None:
        """Forget a job whose client has left. Its places are free before the next step."""
        with self._wake:
            job.cancelled = True
            self._wake.notify()

    def drain(self, seconds: float) -> None:
        """Take no more jobs, and fail what is not finished in this time."""
        with self._wake:
            deadline = time.monotonic() + seconds
            self._deadline = deadline if self._deadline is None else min(self._deadline, deadline)
            self._wake.notify()

    def stop(self, seconds: float = 0.0) -> None:
        """Drain, and wait for the thread to end."""
        self.drain(seconds)
        if self._thread.is_alive():
            self._thread.join()

    @property
    def _n_running(self) -> int:
        return sum(len(job.unfinished) for job in self._running)

    def _count(self) -> None:
        self.metrics.running.set(self._n_running)
        self.metrics.waiting.set(sum(len(each.answers) for each in self._waiting))

    def _run(self) -> None:
        while True:
            with self._wake:
                while not self._waiting and not self._running and self._deadline is None:
                    self._wake.wait()
                self._end_late_ones()
                new = self._admit()
                if self._deadline is not None and not self._waiting and not self._running:
                    self._count()
                    return
            self._guarded([job for job in self._running if job not in new], new)
            with self._wake:
                self._running = [job for job in self._running if job.unfinished]
                self._count()

    def _end_late_ones(self) -> None:
        """Drop jobs whose client left, cut those whose time is over, and fail all when the server has to stop."""
        now = time.monotonic()
        must_stop = self._deadline is not None and now >= self._deadline
        for job in [*self._waiting, *self._running]:
            if job.cancelled:
                self.metrics.cancelled.inc(len(job.unfinished))
                self._end(job, "cancelled")
            elif must_stop:
                self._end(job, "stopped", RequestError(STOPPING, status=503, retry_after=10))
            elif now >= job.deadline and job in self._running:
                self.metrics.timed_out.inc(len(job.unfinished))
                for index, answer in job.unfinished:
                    self.batch.drop(answer.row, "length")
                    self._emit(job, Piece(index, answer.text.finish(), None, "length"))
            elif now >= job.deadline:
                self.metrics.timed_out.inc(len(job.unfinished))
                self._end(job, "late", RequestError("No place became free in time.", status=503, retry_after=10))
        self._waiting = deque(job for job in self._waiting if job.unfinished)
        self._running = [job for job in self._running if job.unfinished]

    def _admit(self) -> list[Job]:
        """The next jobs whose answers all find a place, as many as one prefill may hold; at least one if any fits."""
        new: list[Job] = []
        free, longest, n_prompts = self.places - self._n_running, 0, 0
        while self._waiting and len(self._waiting[0].answers) <= free:
            rows = [each.row for each in self._waiting[0].answers]
            longest = max(longest, *(len(row.prompt_ids) for row in rows))
            n_prompts += len({tuple(row.prompt_ids) for row in rows})
            if new and longest * n_prompts > _PREFILL_TOKENS:
                break
            free -= len(rows)
            new.append(self._waiting.popleft())
        self._running += new
        self._count()
        return new

    def _guarded(self, old: Sequence[Job], new: Sequence[Job]) -> None:
        """Feed new prompts, then step every answer. What fails is told to its clients."""
        rows = [each.row for job in new for each in job.answers]
        self._owners.update({id(each.row): (job, index) for job in new for index, each in enumerate(job.answers)})
        try:
            self._deliver(self.batch.add(rows))
            self.metrics.prompt_tokens.inc(sum(map(len, {tuple(row.prompt_ids) for row in rows})))
        except Exception as error:
            self._fail(new, error)
        try:
            self._deliver(self.batch.step())
        except Exception as error:
            self.batch.clear()
            self._fail([*old, *new], error)
        alive = {id(row) for row in self.batch.rows}
        self._owners = {key: owner for key, owner in self._owners.items() if key in alive}

    def _deliver(self, got: Sequence[tuple[Row, RowChoice]]) -> None:
        now = time.monotonic()
        for row, choice in got:
            job, index = self._owners[id(row)]
            answer = job.answers[index]
            text = answer.text.push(choice.token)
            if answer.text.stopped:
                row.finish = "stop"
            elif row.finish is not None:
                text += answer.text.finish()
                row.finish = "stop" if answer.text.stopped else row.finish
            self._measure(job, answer, choice, now)
            self._emit(job, Piece(index, text, choice, row.finish))

    def _measure(self, job: Job, answer: Answer, choice: RowChoice, now: float) -> None:
        metrics, first = self.metrics, len(answer.row.ids) == 1
        (metrics.first_token if first else metrics.next_token).observe(now - (job.arrived if first else answer.last))
        answer.last = now
        metrics.completion_tokens.inc()
        metrics.rejections.inc(choice.n_rejected)
        metrics.kl.inc(choice.kl)
        if answer.row.finish is not None:
            metrics.answer.observe(now - job.arrived)
            self._mean_seconds += 0.1 * (now - job.arrived - self._mean_seconds)

    def _fail(self, jobs: Sequence[Job], error: Exception) -> None:
        _log.error("A forward pass failed: its answers are lost, others go on.", exc_info=error)
        self.metrics.failures.inc()
        for job in jobs:
            if job.unfinished:
                self._end(job, "failed", RequestError("The server failed at this answer.", status=500))

    def _end(self, job: Job, finish: str, error: RequestError | None = None) -> None:
        for _, answer in job.unfinished:
            self.batch.drop(answer.row, finish)
        if error is not None:
            self._emit(job, error)

    def _emit(self, job: Job, event: Event) -> None:
        if job.cancelled:
            return
        try:
            job.emit(event)
        except Exception:  # its event loop is closed
            job.cancelled = True
