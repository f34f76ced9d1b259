"""Not a test: `frugalign` command lines, one after the other, each in a process of its own forked from this one.

The libraries are imported once, before anything is computed, so a run costs its own seconds only and can be killed like any other.
`python forked_runs.py RUNS.json` reads `[{"argv": [...], "env": {...}, "log": "file"}, …]` and prints the statuses (−9: SIGKILL).
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any


def _run(run: dict[str, Any]) -> int:
    child = os.fork()
    if child:
        _, status = os.waitpid(child, 0)
        return os.waitstatus_to_exitcode(status)
    status = 70
    try:
        log = os.open(run["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.environ.update(run.get("env", {}))
        from frugalign.cli.main import main

        status = main(run["argv"])
        sys.stdout.flush()
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


def _main() -> None:
    runs = json.loads(Path(sys.argv[1]).read_text())
    os.environ["OMP_NUM_THREADS"] = "1"
    import torch

    torch.set_num_threads(1)
    import frugalign.methods.proxy_rlhf.run  # noqa: F401

    print(json.dumps([_run(run) for run in runs]))


if __name__ == "__main__":
    _main()
