"""`frugalign VERB …`: find the verb, run it, and report a user error in one sentence.

A method's verb comes with its entry (`frugalign.methods.registry`). To add any other verb, add a line to `VERBS` and a module
`frugalign.cli.<verb>` with `run(argv: list[str]) -> int`. `frugalign.cli.parser` shows an example. Heavy libraries are imported only once a
verb runs.
"""

from __future__ import annotations

import errno
import gc
import os
import sys
import warnings
from collections.abc import Sequence
from importlib import import_module

from frugalign import __version__
from frugalign.base.errors import FrugalignError
from frugalign.base.terminal import guarded, print_traceback
from frugalign.base.wording import did_you_mean, shown, shown_path
from frugalign.cli import method
from frugalign.cli.elsewhere import copies_until_the_end

VERBS = {
    "demo": "see a proxy align a frozen model, in minutes, on this machine",
    **{name: verb.summary for name, verb in method.VERBS.items()},
    "generate": "answer one prompt, by a model alone or an aligned one",
    "chat": "talk to a model, alone or aligned",
    "serve": "answer over HTTP as OpenAI's API does, with a playground",
    "evaluate": "compare a policy with its base: quality and cost",
    "lm-eval": "run the tasks of lm-eval on a policy",
    "export": "write a proxy as a bundle for other engines",
    "study": "compare methods on one base and one budget",
    "report": "write a run's report.html",
    "push": "upload an artefact to the Hugging Face Hub",
    "validate": "check every row of a data set",
    "convert": "rewrite a published data format for these commands",
    "env": "print versions and hardware, for a bug report",
}
_DISK_FULL = {errno.ENOSPC, errno.EDQUOT}
_NOT_ALLOWED = {errno.EACCES, errno.EPERM, errno.EROFS}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status: 0, 2 for a user error, 130 after Ctrl-C.

    `FRUGALIGN_DEBUG=1` shows the traceback of a user error.
    """
    with guarded():
        return _main(list(sys.argv[1:] if argv is None else argv))


def _main(arguments: list[str]) -> int:
    try:
        return _dispatch(arguments)
    except SystemExit as stop:  # after --help
        return stop.code if isinstance(stop.code, int) else 0
    except KeyboardInterrupt:
        print("\nStopped.", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `frugalign … | head` has closed the pipe
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
        hint = did_you_mean(verb, VERBS) or f"; there are {', '.join(VERBS)}."
        raise FrugalignError(f"There is no command {shown(verb)}{hint}")
    _prepare()
    with copies_until_the_end():
        if verb in method.VERBS:
            status = method.run(verb, argv[1:])
        else:
            module = verb.replace("-", "_")
            status = import_module(f"frugalign.cli.{module}").run(argv[1:])
    sys.stdout.flush()  # a closed pipe shows here, where it is understood
    return status


def _prepare() -> None:
    """Set what libraries read when they are imported: no telemetry, and no progress bars outside a terminal."""
    # Importing torch and transformers makes millions of long-lived objects. At the default threshold of 700, the collector costs a second.
    gc.set_threshold(100_000, 10, 10)
    sys.excepthook = print_traceback
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    if not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    # They tell a library's authors what to change, and a user cannot.
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"(transformers|peft|trl)\b")
    # The console script's path starts at its own folder, but `my_module:reward` means the current one.
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
        "`frugalign COMMAND --help` lists a command's flags. Start with `frugalign demo`."
    )


def _sentence(error: Exception) -> str | None:
    """What to tell the user; None for a bug, which keeps its traceback."""
    if isinstance(error, FrugalignError):
        return str(error)
    if isinstance(error, OSError):
        where = f" ({shown_path(error.filename)})" if error.filename else ""
        if error.errno in _DISK_FULL:
            return f"No space left on the disk{where}. Files written before are complete."
        if error.errno in _NOT_ALLOWED:
            return f"The system does not allow it: {error.strerror}{where}."
        if error.errno is not None and error.strerror:
            return f"The system reports an error: {error.strerror}{where}."
    if isinstance(error, MemoryError):
        return "The machine is out of memory; lower the batch size or max_new_tokens."
    if type(error).__name__ == "OutOfMemoryError":  # torch's, without importing torch
        return "The accelerator is out of memory; lower the batch size or max_new_tokens."
    return None
