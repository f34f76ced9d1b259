"""How Ray is started and joined, with a stand-in for its module; the real one is started in `test_pool.py`."""

from __future__ import annotations

import logging
import os
import platform
import signal
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from frugalign.base.errors import FrugalignError
from frugalign.workers.ray_cluster import Needs, check_python, connect, room


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> Any:
    """`calls`: of `init`. `error`: what it raises, `times` times."""
    found = SimpleNamespace(calls=[], error=None, times=9, initialized=False)

    def init(**given: Any) -> None:
        found.calls.append(given)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # Ray sets a handler of its own
        if found.error is not None and len(found.calls) <= found.times:
            raise found.error
        found.initialized = True

    module = SimpleNamespace(
        __version__="9.9.9", init=init, is_initialized=lambda: found.initialized, shutdown=lambda: None
    )
    monkeypatch.setitem(sys.modules, "ray", module)
    monkeypatch.delenv("RAY_USAGE_STATS_ENABLED", raising=False)
    return found


def test_without_the_package_it_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(FrugalignError, match=r"--ray needs the package ray: pip install 'frugalign\[ray\]'\."):
        connect("local")


def test_this_machine_alone_is_closed_to_others_and_sends_nothing(stand_in: Any) -> None:
    before = signal.getsignal(signal.SIGTERM)
    connect("local")
    (given,) = stand_in.calls
    assert given["address"] == "local" and given["_node_ip_address"] == "127.0.0.1" and not given["include_dashboard"]
    assert os.environ["RAY_USAGE_STATS_ENABLED"] == "0"
    assert signal.getsignal(signal.SIGTERM) is before
    connect("local")
    assert len(stand_in.calls) == 1, "the connection is used again"


def test_a_cluster_is_joined_at_its_address(stand_in: Any) -> None:
    connect("10.0.0.1:6379")
    assert stand_in.calls[0]["address"] == "10.0.0.1:6379" and "_node_ip_address" not in stand_in.calls[0]


@pytest.mark.parametrize(
    "error", [ConnectionError("no\ncluster  there"), RuntimeError("Version mismatch"), ValueError("x")]
)
def test_a_cluster_that_cannot_be_joined_is_one_sentence(stand_in: Any, error: Exception) -> None:
    stand_in.error = error
    with pytest.raises(FrugalignError, match=f"^Cannot reach Ray at auto: {' '.join(str(error).split())}$"):
        connect("auto")
    assert len(stand_in.calls) == 1


def test_a_busy_machine_gets_three_tries_to_start(stand_in: Any) -> None:
    stand_in.error, stand_in.times = Exception("The current node timed out during startup."), 2
    connect("local")
    assert len(stand_in.calls) == 3
    stand_in.initialized, stand_in.times = False, 9
    with pytest.raises(FrugalignError, match="Cannot reach Ray at local: The current node timed out"):
        connect("local")
    assert len(stand_in.calls) == 6


def machines(*resources: dict[str, float]) -> Any:
    return SimpleNamespace(nodes=lambda: [{"Alive": True, "Resources": each} for each in resources])


def test_a_worker_fits_into_one_machine_not_into_several(caplog: pytest.LogCaptureFixture) -> None:
    ray = machines({"CPU": 4.0, "GPU": 1.0}, {"CPU": 4.0, "GPU": 1.0}, {"CPU": 8.0})
    assert room(ray, Needs(2, 1), "cell", "auto") == 2 and room(ray, Needs(3), "cell", "auto") == 4
    with caplog.at_level(logging.WARNING):
        assert room(ray, Needs(1, 2), "cell", "auto") == 1
    assert "A cell needs 1 CPU and 2 GPU, and no machine has that much; together they have 16 CPU, 2 GPU" in caplog.text
    with pytest.raises(FrugalignError, match="lower ray_cpus, ray_gpus or ray_memory_gib"):
        room(ray, Needs(1, 2), "cell", "local")


@pytest.mark.parametrize(
    ("script", "says"),
    [
        (None, "cannot be started: No such file or directory"),
        (
            "echo 'ModuleNotFoundError: No module named frugalign' >&2; exit 1",
            "needs the packages ray and frugalign: ModuleNotFoundError: No module named frugalign",
        ),
        ("exit 3", "needs the packages ray and frugalign: it printed nothing"),
        (
            f"echo {platform.python_version()} 0.1.2",
            r"with Ray 0\.1\.2, and this command runs on Python .* they must be the same",
        ),
        ("echo 3.1.4 9.9.9", r"is Python 3\.1\.4 with Ray"),
    ],
)
def test_a_python_that_cannot_run_workers(stand_in: Any, script: str | None, says: str, tmp_path: Path) -> None:
    if script is not None:
        (tmp_path / "python").write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / "python").chmod(0o755)
    with pytest.raises(FrugalignError, match=says):
        check_python(str(tmp_path / "python"))


def test_another_patch_of_this_python(stand_in: Any, tmp_path: Path) -> None:
    (tmp_path / "python").write_text(
        f"#!/bin/sh\necho warning\necho {platform.python_version().rpartition('.')[0]}.99 9.9.9\n"
    )
    (tmp_path / "python").chmod(0o755)
    check_python(str(tmp_path / "python"))
