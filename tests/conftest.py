"""What every run of the tests shares."""

from __future__ import annotations

import gc
import importlib.util
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest


def pytest_collection_finish() -> None:
    """Leave what was imported out of the garbage collector: the trainer collects often, half a second each time."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def vllm(tmp_path: Path) -> Iterator[str]:
    """Inside the test, `import vllm` gives a stand-in. Its folder, for workers."""
    from tests.decoding.vllm_stand_in import folder, on_path

    with on_path(found := folder(tmp_path / "vllm")):
        yield found


@pytest.fixture(scope="module")
def ray_here() -> Iterator[str]:
    """Ray on this machine, started as `--ray local` starts it. The address to give. Its files lie in a short path, as its sockets need.

    It stops with the module: a process that other tests fork while Ray's threads run may crash.
    """
    if importlib.util.find_spec("ray") is None:
        pytest.skip("Ray is not installed")
    from frugalign.workers import ray_cluster

    folder = tempfile.mkdtemp(prefix="ray-", dir="/tmp")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_TMPDIR", folder)
        patch.setenv("RAY_AUTH_MODE", "disabled")  # else it writes a token into the home folder
        with patch.context() as starting:
            starting.setattr(ray_cluster, "_STARTS", 8)  # half a minute is short where tests run side by side
            ray = ray_cluster.connect(ray_cluster.LOCAL)
        try:
            yield ray_cluster.LOCAL
        finally:
            ray.shutdown()
            shutil.rmtree(folder, ignore_errors=True)
