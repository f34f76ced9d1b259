"""Proxy-RLHF (arXiv 2403.04283): a tiny network accepts or rejects every token that a frozen language model proposes."""

from frugalign.names import fetched_on_use

_HOME = {
    "GuidedModel": "attachment",
    "attach": "attachment",
    "ProxyGuide": "guide",
    "ProxyModel": "network",
    "ProxyModelConfig": "network",
    "load_proxy": "network",
    "ProxyConfig": "config",
    "ProxyOptions": "options",
    "ProxyTrainer": "trainer",
    "train_proxy": "run",
}
__all__ = list(_HOME)


__getattr__ = fetched_on_use(__name__, _HOME)
