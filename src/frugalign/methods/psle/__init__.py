"""PSLE, self-enhancement under written principles (arXiv 2408.02599). Importing this package imports no torch."""

from frugalign.base.specs import fetched_on_use

_HOME = {"PSLEConfig": "config", "PSLETrainer": "trainer", "train_psle": "run"}
__all__ = list(_HOME)

__getattr__ = fetched_on_use(__name__, _HOME)
