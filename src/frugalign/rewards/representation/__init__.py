"""The representation reward (arXiv 2503.10093): linear probes on a model's own hidden states, and their fit."""

from frugalign.base.specs import lazy_exports

_HOME = {"RepresentationReward": "network"}
__all__ = list(_HOME)

__getattr__ = lazy_exports(__name__, _HOME)
