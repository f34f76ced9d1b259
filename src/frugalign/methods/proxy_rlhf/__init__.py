"""Proxy-RLHF (arXiv 2403.04283): train a proxy with a reward. Importing this package imports no torch."""

from frugalign.base.specs import lazy_exports

_HOME = {
    "ProxyConfig": "config",
    "ProxyOptions": "options",
    "ProxyTrainer": "trainer",
    "train_proxy": "run",
}
__all__ = list(_HOME)

__getattr__ = lazy_exports(__name__, _HOME)
