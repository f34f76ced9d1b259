"""One command at a time in a run folder."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from frugalign.base.errors import FrugalignError
from frugalign.base.files import is_leftover, writing
from frugalign.runs.layout import LOCK_FILE, STAGING_FOLDER

_held: set[tuple[int, Path]] = set()
"""(process id, folder) of every lock held. A forked process inherits the set, but holds none of the locks."""


@contextmanager
def in_use(folder: str | Path, *, main_process: bool = True, wait: float = 0) -> Iterator[None]:
    """Hold the lock of a folder, which is created if missing. The system frees the lock of a killed process.

    A process that holds a folder enters it, and every folder inside, without another lock. A demo trains and evaluates in
    one folder, and PSLE trains in the folders of its rounds. Files that a killed process left half-written are deleted.

    Args:
        main_process: False in the other processes of a distributed run, which take no lock.
        wait: seconds to wait for another process.

    Raises:
        FrugalignError: another process holds the folder, or it cannot be written to: nothing in it has changed. Or the
            folder was deleted while it was held.
    """
    place = Path(folder).resolve()
    mine = os.getpid(), place
    if not main_process or any((mine[0], each) in _held for each in (place, *place.parents)):
        yield
        return
    with writing(folder):
        place.mkdir(parents=True, exist_ok=True)
        try:
            lock = FileLock(place / LOCK_FILE).acquire(timeout=wait)
        except Timeout as error:
            raise FrugalignError(f"Another command is using {folder}.") from error
    _held.add(mine)
    try:
        with lock:
            delete_leftovers(place)
            yield
    except Exception as error:
        if not (place / LOCK_FILE).exists():
            raise _gone(folder) from error
        raise
    finally:
        _held.discard(mine)
    if not (place / LOCK_FILE).exists():
        raise _gone(folder)


def check_not_deleted(folder: str | Path) -> None:
    """Stop a command that would write on into a folder that it holds no longer, and leave an artefact that looks whole.

    Raises:
        FrugalignError: `folder`, or one around it, was deleted while this process was holding it.
    """
    place = Path(folder).resolve()
    for process, held in _held:
        if process == os.getpid() and held in (place, *place.parents) and not (held / LOCK_FILE).exists():
            raise _gone(held)


def _gone(folder: str | Path) -> FrugalignError:
    return FrugalignError(f"{folder} was deleted while this command was using it, so its result is incomplete.")


def delete_leftovers(folder: Path) -> None:
    """Delete half-written files and staged folders of a killed process, here and below. Folders with a lock of their own
    are left alone."""
    for path in folder.iterdir():
        if path.is_symlink():
            continue
        if path.is_dir():
            if path.name == STAGING_FOLDER:
                shutil.rmtree(path, ignore_errors=True)
            elif not (path / LOCK_FILE).exists():
                delete_leftovers(path)
        elif is_leftover(path):
            path.unlink(missing_ok=True)
