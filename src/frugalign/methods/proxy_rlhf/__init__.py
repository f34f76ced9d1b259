"""Proxy-RLHF (arXiv 2403.04283): training the proxy by a reward. Importing this package imports no torch."""

from frugalign.base.specs import fetched_on_use

_HOME = {
    "ProxyConfig": "config",
    "ProxyOptions": "options",
    "ProxyTrainer": "trainer",
    "train_proxy": "run",
}
__all__ = list(_HOME)

__getattr__ = fetched_on_use(__name__, _HOME)
