"""One command at a time in a run folder."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from frugalign.base.errors import FrugalignError
from frugalign.base.files import is_leftover, writing
from frugalign.base.parsing import parse_json
from frugalign.base.specs import is_url
from frugalign.runs.layout import LOCK_FILE, STAGING_FOLDER

fcntl: Any
try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

_INHERITED = "FRUGALIGN_FOLDERS_IN_USE"
"""The environment variable that tells the processes which a command starts what it holds."""
READING_FILE = ".reading"
_PROBING = 0.2
"""Seconds for which `is_held` in another process may hold a lock at most."""
_ENDING = 5.0
"""Seconds within which the processes of a killed command end."""
_held: set[tuple[int, Path]] = set()
"""(process id, folder) of every lock held. A forked process inherits the set, but holds none of the locks."""


@contextmanager
def in_use(
    folder: str | Path, *, main_process: bool = True, wait: float = 0, shared: Path | None = None
) -> Iterator[None]:
    """Hold the lock of a folder, which is created if missing. The system frees the lock of a killed process.

    A process that holds a folder enters it, and every folder inside, without another lock. A demo trains and evaluates in
    one folder, and PSLE trains in the folders of its rounds. The processes that it starts may hold folders inside, as the
    cells of a study do. Any other process that holds a folder around or inside is in the way. Files that a killed process
    left half-written are deleted.

    Args:
        main_process: False in the other processes of a distributed run, which take no lock.
        wait: seconds to wait for another process.
        shared: a folder inside whose parts other commands may hold, such as the trainings that studies share.

    Raises:
        FrugalignError: another process holds the folder, one around it or one inside, or it cannot be written to: nothing
            in it has changed. Or the folder was deleted while it was held.
    """
    if is_url(str(folder)):
        raise FrugalignError(
            f"{folder} is a URL. A command mirrors its output_dir there; from Python, run in `frugalign.runs.elsewhere.working_copy`."
        )
    place = Path(folder).resolve()
    if not main_process or any((os.getpid(), each) in _held for each in (place, *place.parents)):
        yield
        return
    _check_around(place)
    with writing(folder):
        place.mkdir(parents=True, exist_ok=True)
        try:
            lock = FileLock(place / LOCK_FILE).acquire(timeout=max(wait, _PROBING))
        except Timeout as error:
            raise FrugalignError(f"Another command is using {folder}.") from error
    try:
        with lock:
            # Again, since another process may have begun in between. It finds this lock, or this finds its.
            _check_around(place)
            _check_inside(place, shared)
            with holding(place):
                delete_leftovers(place)
                yield
    except Exception as error:
        if not (place / LOCK_FILE).exists():
            raise _gone(folder) from error
        raise
    if not (place / LOCK_FILE).exists():
        raise _gone(folder)


@contextmanager
def holding(folder: str | Path) -> Iterator[None]:
    """Note that this process holds the lock of a folder: it, and the processes that it starts, may use what is inside."""
    place = Path(folder).resolve()
    mine = os.getpid(), place
    _held.add(mine)
    os.environ[_INHERITED] = json.dumps([*_inherited(), str(place)])
    try:
        yield
    finally:
        _held.discard(mine)
        rest = _inherited()
        if str(place) in rest:  # another thread may have taken or left folders meanwhile
            rest.remove(str(place))
        if rest:
            os.environ[_INHERITED] = json.dumps(rest)
        else:
            os.environ.pop(_INHERITED, None)


def _inherited() -> list[str]:
    """The folders that this process, or those that started it, hold."""
    try:
        found = parse_json(os.environ.get(_INHERITED, "[]"))
    except ValueError:
        return []
    return [str(each) for each in found] if isinstance(found, list) else []


def _check_around(place: Path) -> None:
    """Refuse a folder inside one that a process holds which did not start this one."""
    known = _inherited()
    for around in place.parents:
        if str(around) not in known and is_held(around / LOCK_FILE):
            raise FrugalignError(f"Another command is using {around}, and {place} is inside it.")


def _check_inside(place: Path, shared: Path | None) -> None:
    """Refuse a folder with one inside that another process holds. Processes of a killed command get a moment to end."""
    until = time.monotonic() + _ENDING
    for parent, folders, files in os.walk(place):
        apart = None if shared is None else shared.resolve()
        folders[:] = [name for name in folders if name != STAGING_FOLDER and Path(parent, name) != apart]
        if LOCK_FILE not in files or Path(parent) == place:
            continue
        while is_held(Path(parent) / LOCK_FILE):
            if time.monotonic() > until:
                raise FrugalignError(f"Another command is using {parent}, which is inside {place}.")
            time.sleep(_PROBING / 2)


def is_held(lock: Path) -> bool:
    """Whether a process holds this lock file. It is not changed, so it may be another program's."""
    return _is_locked(lock, "LOCK_SH")


class Reading:
    """Keeps a folder from being deleted by `is_read`'s callers, as long as the object lives."""

    def __init__(self, folder: Path) -> None:
        self._file = os.open(folder / READING_FILE, os.O_RDWR | os.O_CREAT, 0o666)
        if fcntl is not None:
            fcntl.flock(self._file, fcntl.LOCK_SH)

    def __deepcopy__(self, memo: Any) -> Reading:
        return self

    def __del__(self) -> None:
        if hasattr(self, "_file"):
            os.close(self._file)


def is_read(folder: Path) -> bool:
    """Whether somebody is `Reading` the folder."""
    return _is_locked(folder / READING_FILE, "LOCK_EX")


def _is_locked(file: Path, kind: str) -> bool:
    """Whether a lock of this kind is refused. Without `fcntl` (Windows), that is not known."""
    if fcntl is None:
        return False
    try:
        opened = os.open(file, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(opened, getattr(fcntl, kind) | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # a file system without locks
        return False
    finally:
        os.close(opened)
    return False


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
