"""Method 2: a representation reward and preference re-ranking (arXiv 2503.10093). Importing this package imports no torch."""

from frugalign.names import fetched_on_use

_HOME = {
    "FeatureStore": "features",
    "RerankConfig": "config",
    "RerankTrainer": "trainer",
    "train_reranked": "run",
    "train_reward": "probing",
}
__all__ = list(_HOME)

__getattr__ = fetched_on_use(__name__, _HOME)
