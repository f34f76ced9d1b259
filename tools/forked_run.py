"""Run a command in a process that is forked from this one, and stop it at a given moment. For `tools/kill.py`."""

from __future__ import annotations

import errno
import mmap
import os
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_BEFORE = ("write", "staged", "append", "move")
"""The announced moments at which the system may refuse to change a file."""


@dataclass(frozen=True)
class Moment:
    """When a run is stopped: after `seconds`, or at the `change`-th announced change of a file. Neither: never.

    `how`: `kill`; `full`, from then on no file can be written; `deleted`, the run folder is deleted.
    """

    seconds: float | None = None
    change: int | None = None
    how: str = "kill"


class Counter:
    """The number of changes of files so far, shared by the processes of a run."""

    def __init__(self) -> None:
        self.memory = mmap.mmap(-1, 8)

    @property
    def value(self) -> int:
        return int.from_bytes(self.memory[:8], "little")

    def up(self) -> int:
        """Count one, and return the number so far."""
        self.memory[:8] = (self.value + 1).to_bytes(8, "little")
        return self.value


@dataclass(frozen=True)
class Ended:
    """How a run ended: its status (−9 after SIGKILL), its seconds, and its number of changes of files."""

    status: int
    seconds: float
    changes: int


class ForkedCell:
    """Takes the place of `subprocess.Popen` in a study's runner: the cell is forked, which saves the import of the libraries."""

    def __class_getitem__(cls, _: Any) -> Any:
        return cls

    def __init__(self, words: list[str], stdout: Any, **_: Any) -> None:
        from frugalign.study import cell

        self.returncode: int | None = None
        self.pid = os.fork()
        if self.pid == 0:
            _child(lambda: cell.main(*words[3:]), stdout.fileno())

    def poll(self) -> int | None:
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def wait(self) -> int:
        while self.poll() is None:
            time.sleep(0.01)
        return self.returncode or 0

    def terminate(self) -> None:
        if self.poll() is None:
            os.kill(self.pid, signal.SIGTERM)


def _child(act: Callable[[], int], output: int) -> None:
    """In a forked process: act, with the output in a file, and end without what the parent would do at its end."""
    status = 1
    try:
        os.dup2(output, 1)
        os.dup2(output, 2)
        status = act()
        sys.stdout.flush()
        sys.stderr.flush()
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def run(words: list[str], folder: Path, moment: Moment) -> Ended:
    """Run a command in `folder`, in a process group of its own, until it ends or the moment comes."""
    from frugalign.base import files
    from frugalign.cli.main import main
    from frugalign.study import runner

    counter = Counter()

    def announced(name: str, path: Path) -> None:
        number = counter.up()
        if moment.change is None or number < moment.change:
            return
        if moment.how == "full" and name in _BEFORE:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        if moment.how == "deleted" and number == moment.change:
            shutil.rmtree(folder / "run", ignore_errors=True)
        if moment.how == "kill" and number == moment.change:
            os.killpg(0, signal.SIGKILL)

    def act() -> int:
        os.chdir(folder)
        files.on_change = announced
        runner.subprocess = _Subprocess  # type: ignore[attr-defined]
        return main(words)

    began = time.monotonic()
    with (folder / "output.txt").open("ab") as output:
        child = os.fork()
        if child == 0:
            os.setpgid(0, 0)
            _child(act, output.fileno())
    with suppress(OSError):  # it has done so itself
        os.setpgid(child, child)
    while True:
        pid, status = os.waitpid(child, os.WNOHANG)
        seconds = time.monotonic() - began
        if pid:
            return Ended(os.waitstatus_to_exitcode(status), seconds, counter.value)
        if moment.seconds is not None and seconds >= moment.seconds:
            os.killpg(child, signal.SIGKILL)
        time.sleep(0.01)


class _Subprocess:
    """What a study's runner uses of `subprocess`."""

    Popen, DEVNULL, STDOUT = ForkedCell, subprocess.DEVNULL, subprocess.STDOUT
