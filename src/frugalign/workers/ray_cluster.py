"""Ray, started on this machine or joined at an address. It is imported only where `--ray` asks for it.

Nothing is sent anywhere: Ray's usage statistics are off, and no dashboard is started. A cluster on one machine listens on the loopback alone.
"""

from __future__ import annotations

import logging
import os
import platform
import signal
import subprocess
import threading
from dataclasses import dataclass
from typing import Any

from frugalign.base.errors import FrugalignError

LOCAL = "local"
"""The address that stands for a cluster of this machine alone, which ends with the command."""
_LOOPBACK = "127.0.0.1"
_STARTS = 3
"""Times that Ray is started here. It gives up after half a minute, which a busy machine may need."""
_ABOUT = "import platform, frugalign; from importlib.metadata import version; print(platform.python_version(), version('ray'))"
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Needs:
    """What one worker or cell reserves: CPU cores, GPUs (a fraction shares one), and GiB of memory. `python`: which one runs it."""

    cpus: float = 1.0
    gpus: float = 0.0
    memory_gib: float | None = None
    python: str | None = None

    def options(self) -> dict[str, Any]:
        """As the keyword arguments of Ray's `options`."""
        memory = {} if self.memory_gib is None else {"memory": int(self.memory_gib * 2**30)}
        python = {} if self.python is None else {"runtime_env": {"py_executable": self.python}}
        return {"num_cpus": self.cpus, "num_gpus": self.gpus, **memory, **python}

    def fit_into(self, has: dict[str, float]) -> int:
        """How often they fit into these resources, named as Ray names them."""
        needed = {"CPU": self.cpus, "GPU": self.gpus, "memory": (self.memory_gib or 0) * 2**30}
        return min(int(has.get(name, 0.0) / value + 1e-9) for name, value in needed.items() if value)

    def __str__(self) -> str:
        parts = [f"{self.cpus:g} CPU", *([f"{self.gpus:g} GPU"] if self.gpus else [])]
        return " and ".join([*parts, *([] if self.memory_gib is None else [f"{self.memory_gib:g} GiB of memory"])])


def needs_of(options: Any) -> Needs:
    """The resources that options with `groups` of `options/cluster.py` name."""
    return Needs(options.ray_cpus, options.ray_gpus, options.ray_memory_gib)


def check_python(python: str) -> None:
    """Check that a Python on this machine can run workers. Otherwise Ray would try to start them for ever.

    Raises:
        FrugalignError: it cannot be started, lacks Ray or this package, or has other versions of Python and Ray.
    """
    try:
        done = subprocess.run([python, "-c", _ABOUT], capture_output=True, text=True)
    except OSError as error:
        raise FrugalignError(f"ray_python {python} cannot be started: {error.strerror}.") from error
    if done.returncode:
        said = (done.stderr.strip().splitlines() or ["it printed nothing"])[-1]
        raise FrugalignError(f"ray_python {python} needs the packages ray and frugalign: {said}.")
    found, own = done.stdout.split()[-2:], (platform.python_version(), connect(LOCAL).__version__)
    minor = [each.rpartition(".")[0] for each in (found[0], own[0])]
    if minor[0] != minor[1] or found[1] != own[1]:
        raise FrugalignError(
            f"ray_python {python} is Python {found[0]} with Ray {found[1]}, and this command runs on Python {own[0]} with Ray {own[1]}: they must be the same."
        )


def connect(address: str) -> Any:
    """The module `ray`, connected. A connection that this process has is used again.

    Raises:
        FrugalignError: Ray is not installed, or cannot be reached.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError as error:
        raise FrugalignError("--ray needs the package ray: pip install 'frugalign[ray]'.") from error
    if ray.is_initialized():
        return ray
    if address == LOCAL:
        os.environ.setdefault("RAY_worker_niceness", "0")  # its workers do this command's own work
    here = {"address": LOCAL, "include_dashboard": False, "_node_ip_address": _LOOPBACK}
    before = signal.getsignal(signal.SIGTERM)
    for left in reversed(range(_STARTS if address == LOCAL else 1)):
        try:
            ray.init(
                **(here if address == LOCAL else {"address": address}), log_to_driver=False, logging_level=logging.ERROR
            )
            break
        except Exception as error:  # Ray raises any kind
            ray.shutdown()
            if not left:
                said = " ".join(str(error).split()) or type(error).__name__
                raise FrugalignError(f"Cannot reach Ray at {address}: {said}") from error
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, before)  # Ray sets its own
    return ray


def room(ray: Any, needs: Needs, what: str, address: str) -> int:
    """How many workers or cells the cluster has room for now, at least 1. Machines may join later.

    Args:
        what: such as `worker`, for messages.

    Raises:
        FrugalignError: this machine alone has no room for one.
    """
    machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    found = sum(needs.fit_into(has) for has in machines)
    if found == 0:
        has = ", ".join(f"{sum(each.get(name, 0.0) for each in machines):g} {name}" for name in ("CPU", "GPU"))
        sentence = f"A {what} needs {needs}, and no machine has that much; together they have {has}"
        if address == LOCAL:
            raise FrugalignError(f"{sentence}: lower ray_cpus, ray_gpus or ray_memory_gib.")
        _log.warning("%s. It waits until one has joined.", sentence)
    return max(1, found)
