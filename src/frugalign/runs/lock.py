"""One command at a time in a run folder."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from frugalign.base.errors import FrugalignError
from frugalign.base.files import writing
from frugalign.runs.layout import LOCK_FILE

_held: set[tuple[int, Path]] = set()
"""(process id, folder) of every lock held. A forked process inherits the set, but holds none of the locks."""


@contextmanager
def in_use(folder: str | Path, *, main_process: bool = True) -> Iterator[None]:
    """Hold the lock of a folder, which is created if missing. The system frees the lock of a killed process.

    A process that holds a folder enters it, and every folder inside, without another lock. A demo trains and evaluates in
    one folder, and PSLE trains in the folders of its rounds.

    Args:
        main_process: False in the other processes of a distributed run, which take no lock.

    Raises:
        FrugalignError: another process holds the folder, or it cannot be written to. Nothing in it has changed.
    """
    place = Path(folder).resolve()
    mine = os.getpid(), place
    if not main_process or any((mine[0], each) in _held for each in (place, *place.parents)):
        yield
        return
    with writing(folder):
        place.mkdir(parents=True, exist_ok=True)
        try:
            lock = FileLock(place / LOCK_FILE).acquire(timeout=0)
        except Timeout as error:
            raise FrugalignError(f"Another command is using {folder}.") from error
    _held.add(mine)
    try:
        with lock:
            yield
    finally:
        _held.discard(mine)
