"""SIGKILL at random moments, a full disk and a deleted folder: the same command again ends as a run that nothing happened to."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("how", "commands"), [("kill", ["proxy", "psle"]), ("full", ["proxy", "reward"]), ("deleted", ["proxy"])]
)
def test_a_stopped_run_is_resumed_by_the_same_command(how: str, commands: list[str], tmp_path: Path) -> None:
    """`make kill` does this at 50 moments for every command."""
    words = ["-m", "tools.kill", "--how", how, "--moments", "2", "--only", *commands, "--keep", str(tmp_path)]
    done = subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    for command in commands:
        assert f"{command}: 2 runs, " in done.stdout
