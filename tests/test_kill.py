"""SIGKILL at random moments, a full disk and a deleted folder: the same command again ends as a run that nothing happened to."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_a_stopped_run_is_resumed_by_the_same_command(tmp_path: Path) -> None:
    """`make kill` does this at 50 moments for every command. PSLE's own tests kill each of its phases."""
    words = ["-m", "tools.kill", "--how", "kill", "full", "deleted", "--moments", "1", "--only", "proxy", "proxy-pairs"]
    done = subprocess.run([sys.executable, *words, "--keep", str(tmp_path)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    for name in ("proxy", "proxy-pairs"):
        for how in ("kill", "full", "deleted"):
            assert f"{name}, {how}: 1 run, " in done.stdout
