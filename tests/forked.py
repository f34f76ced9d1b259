"""A process of its own without the seconds that importing takes: forked from the tests', so it can be killed for real.

A new interpreter spends eight seconds of a core on imports. Start one only where the start itself is tested.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path


class Forked:
    """`function()` in a child; what it prints goes to `log`. It exits with what the function returns, or 70 after an exception."""

    def __init__(self, function: Callable[[], int | None], log: Path, env: Mapping[str, str] | None = None) -> None:
        self.log = log
        self.returncode: int | None = None
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if not self.pid:
            os._exit(_in_child(function, log, env or {}))

    def poll(self) -> int | None:
        """Its exit status, -9 after SIGKILL, or None while it runs."""
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.returncode = os.waitstatus_to_exitcode(status) if pid else None
        return self.returncode

    def wait(self, seconds: float = 120) -> int:
        until = time.monotonic() + seconds
        while (status := self.poll()) is None:
            if time.monotonic() > until:
                self.kill()
                raise TimeoutError(f"still running after {seconds} seconds:\n{self.log.read_text()}")
            time.sleep(0.005)
        return status

    def wait_for(self, happened: Callable[[], bool], seconds: float = 60) -> None:
        """Until something has happened, or the process has ended."""
        until = time.monotonic() + seconds
        while not happened() and self.poll() is None and time.monotonic() < until:
            time.sleep(0.002)

    def kill(self) -> None:
        self._end(signal.SIGKILL)

    def terminate(self) -> None:
        self._end(signal.SIGTERM)

    def _end(self, how: signal.Signals) -> None:
        if self.poll() is None:
            os.kill(self.pid, how)
            _, status = os.waitpid(self.pid, 0)
            self.returncode = os.waitstatus_to_exitcode(status)


def _in_child(function: Callable[[], int | None], log: Path, env: Mapping[str, str]) -> int:
    try:
        opened = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(opened, 1)
        os.dup2(opened, 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w", buffering=1), os.fdopen(2, "w", buffering=1)
        os.environ.update(env)
        _forget_the_parent()
        return function() or 0
    except BaseException:
        traceback.print_exc()
        return 70
    finally:
        sys.stdout.flush()
        sys.stderr.flush()


def _forget_the_parent() -> None:
    import torch
    from accelerate.state import AcceleratorState, GradientState

    torch.set_num_threads(1)  # the parent's threads are not in the child
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


def two_processes(function: Callable[[], int | None], folder: Path, number: int = 2) -> None:
    """`function()` on two processes that know each other, or on `number`, as torchrun starts them; their output is in `folder`."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {
        "WORLD_SIZE": str(number),
        "LOCAL_WORLD_SIZE": str(number),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "ACCELERATE_USE_CPU": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }
    ranks = [
        Forked(function, folder / f"rank-{rank}.log", common | {"RANK": str(rank), "LOCAL_RANK": str(rank)})
        for rank in range(number)
    ]
    try:
        statuses = [rank.wait() for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    assert statuses == [0] * number, "".join(rank.log.read_text()[-3000:] for rank in ranks)
