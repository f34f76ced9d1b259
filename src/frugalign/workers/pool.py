"""A pool of workers: each holds what a piece of work needs, such as a model, and answers pieces one at a time.

A piece and its answer are pure functions of their content. So it does not matter which worker answers, in which order, or how often it was tried.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from frugalign.workers.record import Piece, Record

NOTHING = Record()


class Worker(Protocol):
    """Answers pieces of work."""

    def share(self, record: Record) -> None:
        """Take what the pieces after this call have in common, such as a proxy. It replaces what was shared before."""
        ...

    def answer(self, piece: Record) -> Record:
        """The answer to one piece."""
        ...


@dataclass
class Traffic:
    """Bytes that a pool has moved: `broadcast`, what all workers share, once a run; `sent` pieces; `returned` answers. `lost`: workers that
    died."""

    broadcast: int = 0
    sent: int = 0
    returned: int = 0
    lost: int = 0


class Pool(Protocol):
    """Workers that share the pieces of a run. `size`: how many there are."""

    size: int
    traffic: Traffic

    def run(self, pieces: Sequence[Piece], shared: Record = NOTHING) -> Iterator[Record]:
        """The answers, in the order of the pieces.

        Raises:
            FrugalignError: workers cannot start, or die again and again. Errors of a worker are raised here.
        """
        ...

    def close(self) -> None:
        """End the workers."""
        ...


class LocalPool:
    """One worker, in this process. Nothing is copied, and nothing travels. The worker reports its own progress."""

    def __init__(self, worker: Worker) -> None:
        self.size, self.traffic, self._worker = 1, Traffic(), worker

    def run(self, pieces: Sequence[Piece], shared: Record = NOTHING) -> Iterator[Record]:
        self._worker.share(shared)
        for piece in pieces:
            yield self._worker.answer(piece.record)

    def close(self) -> None:
        """There is nothing to end."""
