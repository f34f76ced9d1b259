"""A pool of Ray actors, each with a worker in a process of its own, on this machine or another one.

What all workers share is put into Ray's object store once a run. A worker that dies is replaced, and its piece goes to whoever is free. An answer
is taken once, so nothing is counted twice. While a new worker loads its model, the others work on.
"""

from __future__ import annotations

import logging
import os
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

from frugalign.base.errors import FrugalignError
from frugalign.base.progress import advance
from frugalign.base.specs import load_attribute
from frugalign.base.wording import pluralize, shown
from frugalign.workers.pool import NOTHING, Traffic, Worker
from frugalign.workers.ray_cluster import LOCAL, Needs, connect, room
from frugalign.workers.record import Piece, Record, pack, unpack

_AHEAD = 2
"""Pieces for each worker that may be done before the one that is wanted next. It bounds the memory of answers that wait."""
_TRIES = 5
"""Workers that may die over one piece, and for each worker of the pool while they start."""
_PATIENCE = 60.0
"""Seconds without any worker until the command says that it waits."""
_log = logging.getLogger(__name__)


class Host:
    """The worker of an actor. Ray makes it in the actor's process."""

    def __init__(self) -> None:
        self._worker: Worker
        self._run: int | None = None

    def start(self, make: str, about: bytes) -> int:
        """Make the worker. Returns the id of its process."""
        self._worker = load_attribute(make)(unpack(about))
        return os.getpid()

    def answer(self, piece: bytes, shared: bytes, run: int) -> bytes:
        """The answer to a piece of a `run`."""
        if run != self._run:
            self._worker.share(unpack(shared))
            self._run = run
        return pack(self._worker.answer(unpack(piece)))


@dataclass(frozen=True)
class _Task:
    """What an actor is doing: a `piece` of a `run` with its part of the progress, or starting (no piece). Runs count from 1."""

    actor: Any
    run: int = 0
    piece: int | None = None
    unit: str = ""
    size: float = 0.0


class RayPool:
    """`size` workers on the cluster at `address`.

    Args:
        make: `package.module:function`, which makes a worker of `about` in its process. The machines need the same code.
        about: what it needs, such as the name of a model.

    Raises:
        FrugalignError: Ray is missing or cannot be reached, or this machine alone has no room for so many.
    """

    def __init__(self, address: str, size: int, needs: Needs, make: str, about: Record) -> None:
        self.size, self.traffic, self.pids = size, Traffic(), dict[Any, int]()
        self._ray = connect(address)
        there = room(self._ray, needs, "worker", address)
        if address == LOCAL and there < size:
            raise FrugalignError(
                f"This machine has room for {pluralize(there, 'worker')} with {needs} each, not {size}: lower ray_workers or what each needs."
            )
        # Ray itself restarts nothing: a machine that has left for good would keep its pieces waiting.
        self._actors = self._ray.remote(Host).options(**needs.options(), max_restarts=0)
        self._make, self._about = make, self._ray.put(pack(about))
        self._runs, self._never_started, self._lost_with = count(1), 0, Counter[tuple[int, int]]()
        self._idle: list[Any] = []
        self._tasks: dict[Any, _Task] = {}
        for _ in range(size):
            self._start()

    def run(self, pieces: Sequence[Piece], shared: Record = NOTHING) -> Iterator[Record]:
        content, number = pack(shared), next(self._runs)
        self.traffic.broadcast += len(content)
        everyone = self._ray.put(content)
        left, found = deque(range(len(pieces))), dict[int, bytes | Exception]()
        for wanted in range(len(pieces)):
            while wanted not in found:
                while self._idle and left and left[0] < wanted + _AHEAD * self.size:
                    self._hand_out(left.popleft(), pieces, everyone, number)
                self._collect(number, left, found)
            answer = found.pop(wanted)
            if isinstance(answer, Exception):
                raise answer
            yield unpack(answer)

    def wait(self) -> None:
        """Until every worker has started. `run` needs no such wait: the first worker begins while the others load.

        Raises:
            FrugalignError: one cannot start.
        """
        while any(task.piece is None for task in self._tasks.values()):
            self._collect(0, deque(), {})

    def close(self) -> None:
        for actor in {*self._idle, *(task.actor for task in self._tasks.values())}:
            self._end(actor)
        self._idle, self._tasks = [], {}

    def _start(self) -> None:
        actor = self._actors.remote()
        self._tasks[actor.start.remote(self._make, self._about)] = _Task(actor)

    def _end(self, actor: Any) -> None:
        self.pids.pop(actor, None)
        self._ray.kill(actor)

    def _hand_out(self, place: int, pieces: Sequence[Piece], everyone: Any, number: int) -> None:
        actor, piece = self._idle.pop(0), pieces[place]
        content = pack(piece.record)
        self.traffic.sent += len(content)
        self._tasks[actor.answer.remote(content, everyone, number)] = _Task(
            actor, number, place, piece.unit, piece.size
        )

    def _collect(self, number: int, left: deque[int], found: dict[int, bytes | Exception]) -> None:
        """Wait for an actor. Its answer, or the error that it raised, goes into `found`, or its piece back to `left` if it has died.

        An error waits for its piece's turn as an answer does: which of two comes first must not depend on which worker was faster.
        """
        errors = self._ray.exceptions
        done, _ = self._ray.wait(list(self._tasks), timeout=None if self.pids else _PATIENCE)
        if not done:
            _log.warning("Still waiting for the first of %s to start.", pluralize(self.size, "worker"))
            done, _ = self._ray.wait(list(self._tasks))
        task = self._tasks.pop(done[0])
        try:
            answer = self._ray.get(done[0])
        except errors.RayTaskError as error:  # the worker raised it
            if task.piece is None:
                raise _at_start(error) from error
            self._idle.append(task.actor)
            if task.run == number:
                found[task.piece] = _of_a_piece(error)
            return
        except errors.RayError as error:
            if task.run == number and task.piece is not None:
                left.appendleft(task.piece)
            self._replace(task, error)
            return
        self._idle.append(task.actor)
        if task.piece is None:
            self.pids[task.actor] = answer
            self._never_started = 0
            return
        if task.run == number:  # otherwise of a run that nobody reads any more
            found[task.piece] = answer
            self.traffic.returned += len(answer)
            advance(task.unit, task.size)

    def _replace(self, task: _Task, error: Exception) -> None:
        """Start a worker in place of one that has died."""
        self.traffic.lost += 1
        self._end(task.actor)
        said = shown(str(error), quoted=False, longest=500)
        if task.piece is None:
            self._never_started += 1
            if self._never_started >= _TRIES * self.size:
                raise FrugalignError(
                    f"{pluralize(self._never_started, 'worker')} died while they started, possibly for want of memory: {said}"
                )
        else:
            self._lost_with[task.run, task.piece] += 1
            if self._lost_with[task.run, task.piece] >= _TRIES:
                raise FrugalignError(
                    f"{pluralize(_TRIES, 'worker')} died over the same piece of work, possibly for want of memory: {said}"
                )
        _log.warning("A worker died. Another one takes its place, and its piece is run again.")
        self._start()


def _of_a_piece(error: Any) -> Exception:
    """What a worker has raised over a piece: a user's error as the sentence it was, any other with its traceback."""
    cause = getattr(error, "cause", error)
    return FrugalignError(str(cause)) if isinstance(cause, FrugalignError) else RuntimeError(str(error))


def _at_start(error: Any) -> FrugalignError:
    """What a worker has raised while it started. Anything may be wrong with its machine, so all of it is a sentence."""
    cause = getattr(error, "cause", error)
    if isinstance(cause, FrugalignError):
        return FrugalignError(str(cause))
    said = shown(f"{type(cause).__name__}: {cause}", quoted=False, longest=300)
    return FrugalignError(
        f"A worker cannot start: {said} Every machine of the cluster needs the same packages and files."
    )
