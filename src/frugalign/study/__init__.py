"""Studies: every method on one base, prompts, reward and budget, and the page about it. Importing this package imports no torch."""

from frugalign.names import fetched_on_use

_HOME = {
    "StudyOptions": "options",
    "Finished": "running",
    "read_study": "running",
    "run_study": "running",
    "write_study": "page",
}
__all__ = list(_HOME)

__getattr__ = fetched_on_use(__name__, _HOME)
