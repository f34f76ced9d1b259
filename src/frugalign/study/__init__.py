"""Studies: every method on one base, prompts, reward and budget. Importing this package imports no torch."""

from frugalign.base.specs import fetched_on_use

_HOME = {
    "StudyOptions": "options",
    "Finished": "runner",
    "read_study": "runner",
    "run_study": "runner",
}
__all__ = list(_HOME)

__getattr__ = fetched_on_use(__name__, _HOME)
