"""Representation reward (arXiv 2503.10093): probes on a model's own hidden states as a reward. Importing this package imports no torch."""

from frugalign.base.specs import lazy_exports

_HOME = {"FeatureStore": "feature_store", "RewardOptions": "options", "train_reward": "run"}
__all__ = list(_HOME)

__getattr__ = lazy_exports(__name__, _HOME)
