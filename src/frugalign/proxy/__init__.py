"""The proxy as an artefact: a tiny network that accepts or rejects every token that a frozen language model proposes."""

from frugalign.base.specs import lazy_exports

_HOME = {
    "GuidedModel": "attachment",
    "attach": "attachment",
    "ProxyGuide": "guide",
    "ProxyModel": "network",
    "ProxyModelConfig": "network",
    "load_proxy": "network",
}
__all__ = list(_HOME)


__getattr__ = lazy_exports(__name__, _HOME)
