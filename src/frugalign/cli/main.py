"""`frugalign VERB …`: find the verb, run it, and report a user error in one sentence.

A method's verb comes with its entry (`frugalign.methods.registry`). To add any other verb, add its line to `VERBS` and a module
`frugalign.cli.<verb>` with `run(argv: list[str]) -> int`; `frugalign.cli.parser` shows how such a module looks. Nothing heavy is imported before
the verb runs.
"""

from __future__ import annotations

import errno
import gc
import os
import sys
from collections.abc import Sequence
from importlib import import_module

from frugalign import __version__
from frugalign.base.errors import FrugalignError
from frugalign.cli import method

VERBS = {
    "demo": "see a frozen model aligned by a proxy, in minutes, on this machine",
    **{name: verb.summary for name, verb in method.VERBS.items()},
    "generate": "answer one prompt, with or without a proxy",
    "chat": "talk to a model, with or without a proxy",
    "evaluate": "measure a policy against its base on prompts",
    "study": "every method on one base, one table, what each costs",
    "report": "write a run's report.html",
    "validate": "check every row of a data set",
    "env": "print versions and hardware, for a bug report",
}
_DISK_FULL = {errno.ENOSPC, errno.EDQUOT}
_NOT_ALLOWED = {errno.EACCES, errno.EPERM, errno.EROFS}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status: 0, 2 for a user error, 130 after Ctrl-C.

    `FRUGALIGN_DEBUG=1` shows the traceback behind a sentence.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        return _dispatch(arguments)
    except SystemExit as stop:  # after --help
        return stop.code if isinstance(stop.code, int) else 0
    except KeyboardInterrupt:
        print("\nStopped.", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `frugalign … | head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        sentence = _sentence(error)
        if sentence is None or os.environ.get("FRUGALIGN_DEBUG"):
            raise
        print(f"frugalign: {sentence}", file=sys.stderr)
        return 2


def _dispatch(argv: list[str]) -> int:
    if not argv or argv[0] in ("--help", "-h", "help"):
        print(help_text())
        return 0
    if argv[0] in ("--version", "-V"):
        print(f"frugalign {__version__}")
        return 0
    verb = argv[0]
    if verb not in VERBS:
        import difflib

        near = difflib.get_close_matches(verb, VERBS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(VERBS)}."
        raise FrugalignError(f"There is no command {verb!r}; {hint}")
    _prepare()
    if verb in method.VERBS:
        status = method.run(verb, argv[1:])
    else:
        status = import_module(f"frugalign.cli.{verb}").run(argv[1:])
    sys.stdout.flush()  # a closed pipe shows here, where it is understood
    return status


def _prepare() -> None:
    """What libraries read from the environment when they are imported: nothing is sent home, and no bars where nobody
    looks."""
    # Importing torch and transformers makes millions of objects that live on: at the default of 700 the collector costs a second.
    gc.set_threshold(100_000, 10, 10)
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    if not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    # The console script's path starts at its own folder; `my_module:reward` means the folder one stands in.
    here = os.getcwd()
    if here not in sys.path and "" not in sys.path:
        sys.path.insert(0, here)


def help_text() -> str:
    """What `frugalign --help` prints."""
    width = max(map(len, VERBS))
    verbs = "\n".join(f"  {verb:<{width}}  {summary}" for verb, summary in VERBS.items())
    return (
        "usage: frugalign COMMAND [--config FILE.yaml] [--flag value …]\n\n"
        "Align language models at a fraction of RLHF's cost.\n\n"
        f"commands:\n{verbs}\n\n"
        "`frugalign COMMAND --help` lists a command's flags; `frugalign demo` is the place to start."
    )


def _sentence(error: Exception) -> str | None:
    """What to tell the user, or None where the error is ours."""
    if isinstance(error, FrugalignError):
        return str(error)
    if isinstance(error, OSError):
        where = f" ({error.filename})" if error.filename else ""
        if error.errno in _DISK_FULL:
            return f"No space left on the disk{where}; what was written before is whole."
        if error.errno in _NOT_ALLOWED:
            return f"The system does not allow it: {error.strerror}{where}."
    if type(error).__name__ == "OutOfMemoryError":  # torch's, without importing torch
        return "The accelerator is out of memory; lower the batch size or max_new_tokens."
    return None
