"""Studies: every method on one base, prompts, reward and budget. Importing this package imports no torch."""

from frugalign.base.specs import lazy_exports

_HOME = {
    "StudyOptions": "options",
    "StudyState": "runner",
    "read_study": "runner",
    "run_study": "runner",
}
__all__ = list(_HOME)

__getattr__ = lazy_exports(__name__, _HOME)
