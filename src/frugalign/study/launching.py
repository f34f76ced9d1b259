"""Where a study's cells run: as processes of this machine, or as tasks on Ray, each with what it reserves."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Protocol

from frugalign.base.errors import FrugalignError
from frugalign.study.layout import LOG_FILE, REQUEST_FILE
from frugalign.study.options import StudyOptions
from frugalign.workers.ray_cluster import connect, needs_of, room

_MODULE = "frugalign.study.cell"
_RETRIES = 3
"""Times that a cell is run again whose process or machine was lost."""
_OURS = ("FRUGALIGN_", "HF_", "OMP_", "TOKENIZERS_")
"""Beginnings of the names of variables that a cell on another machine gets from here."""
_QUIET = {
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "PYTHONUNBUFFERED": "1",
    "TOKENIZERS_PARALLELISM": "false",
}


class Running(Protocol):
    """A cell that was started."""

    def poll(self) -> int | None:
        """Its exit status, -9 after SIGKILL, or None while it runs or waits for its turn."""
        ...

    def terminate(self) -> None:
        """Ask it to stop."""
        ...

    def wait(self) -> int:
        """Its exit status, as soon as it has ended."""
        ...


class Launcher(Protocol):
    """Starts cells. `at_once`: how many run at the same time; `may_wait`: how many more may be started already."""

    at_once: int
    may_wait: int

    def start(self, folder: Path, words: list[str]) -> Running:
        """Run the cell in `folder`. `words`: further arguments of its process. What it prints goes to its log."""
        ...


class Here:
    """Processes of this machine."""

    may_wait = 0

    def __init__(self, jobs: int) -> None:
        self.at_once = jobs

    def start(self, folder: Path, words: list[str]) -> Running:
        given = _QUIET | {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // self.at_once))}
        with (folder / LOG_FILE).open("wb") as log:
            return _process([str(folder), *words], log, given | os.environ)


def _process(
    words: list[str], log: IO[bytes], variables: dict[str, str], folder: str | None = None
) -> subprocess.Popen[bytes]:
    """A cell's own process. `folder`: where it works."""
    return subprocess.Popen(
        [sys.executable, "-m", _MODULE, *words],
        stdout=log,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        env=variables,
        cwd=folder,
    )


class OnRay:
    """Tasks on Ray. All cells are given to it at once, and it starts those that have room, on machines that may join meanwhile."""

    may_wait = 1 << 20

    def __init__(self, options: StudyOptions) -> None:
        assert options.ray is not None
        needs = needs_of(options)
        self._ray = connect(options.ray)
        self.at_once = room(self._ray, needs, "cell", options.ray)
        self._task = self._ray.remote(run_task).options(
            **needs.options(), max_retries=_RETRIES, retry_exceptions=[CellKilled]
        )
        variables = {name: value for name, value in os.environ.items() if name.startswith(_OURS)}
        threads = {"OMP_NUM_THREADS": str(max(1, int(needs.cpus)))}
        hidden = {} if needs.gpus else {"CUDA_VISIBLE_DEVICES": ""}
        self._variables = _QUIET | threads | variables | hidden

    def start(self, folder: Path, words: list[str]) -> Running:
        (folder / LOG_FILE).unlink(missing_ok=True)
        task = self._task.remote(os.getcwd(), str(folder), words, self._variables)
        return _RayCell(self._ray, task)


@dataclass
class _RayCell:
    ray: Any
    task: Any
    status: int | None = None

    def poll(self) -> int | None:
        if self.status is None and self.ray.wait([self.task], timeout=0)[0]:
            self.status = self._result()
        return self.status

    def terminate(self) -> None:
        self.ray.cancel(self.task, force=True)

    def wait(self) -> int:
        self.ray.wait([self.task])
        self.status = self._result()
        return self.status

    def _result(self) -> int:
        try:
            return int(self.ray.get(self.task))
        except self.ray.exceptions.RayTaskError as error:
            cause = getattr(error, "cause", error)
            if isinstance(cause, CellKilled):
                return cause.status
            raise FrugalignError(" ".join(str(cause).split())) from error
        except self.ray.exceptions.RayError:  # its machine was lost, again and again
            return -9


class CellKilled(Exception):
    """The process of a cell was killed by a signal, possibly for its memory. Ray runs the cell again."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


def run_task(folder_here: str, cell: str, words: list[str], variables: dict[str, str]) -> int:
    """On a machine of the cluster: run a cell in a process of its own, whose exit status is the result.

    Args:
        folder_here: where the command was started; relative paths begin there.
        variables: of the environment.

    Raises:
        FrugalignError: this machine does not see the cell's folder. CellKilled: a signal ended the process.
    """
    folder = Path(folder_here, cell)
    if not (folder / REQUEST_FILE).is_file():
        raise FrugalignError(
            f"The machine {os.uname().nodename} does not see {folder}: every machine of the cluster must see output_dir, at the same path."
        )
    with (folder / LOG_FILE).open("ab") as log:
        there = folder_here if os.path.isdir(folder_here) else None
        process = _process([cell, *words], log, os.environ | variables, there)
        try:
            status = process.wait()
        finally:
            process.kill()
    if status < 0:
        raise CellKilled(status)
    return status
