"""PSLE, self-enhancement under written principles (arXiv 2408.02599). Importing this package imports no torch."""

from frugalign.base.specs import lazy_exports

_HOME = {"PSLEConfig": "config", "PSLETrainer": "trainer", "train_psle": "run"}
__all__ = list(_HOME)

__getattr__ = lazy_exports(__name__, _HOME)
