"""What a fresh interpreter has loaded after some code, for tests of what an import must not load."""

import os
import subprocess
import sys


def modules_after(code: str) -> set[str]:
    """Names in `sys.modules` after running the code in an interpreter of its own."""
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport sys\nprint(*sys.modules)"],
        capture_output=True,
        text=True,
        env=dict(os.environ),
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return set(done.stdout.splitlines()[-1].split())
