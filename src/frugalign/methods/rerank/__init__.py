"""Preference re-ranking (arXiv 2503.10093): DPO with labels weighted by the policy's states. Importing this package imports no torch."""

from frugalign.base.specs import lazy_exports

_HOME = {"RerankConfig": "config", "RerankTrainer": "trainer", "train_reranked": "run"}
__all__ = list(_HOME)

__getattr__ = lazy_exports(__name__, _HOME)
