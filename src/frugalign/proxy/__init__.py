"""Proxy-RLHF (arXiv 2403.04283): a tiny network accepts or rejects every token that a frozen language model proposes."""

from typing import Any

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


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
