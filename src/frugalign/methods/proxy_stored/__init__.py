"""A proxy from stored data: preference pairs, demonstrations or a teacher. Importing this package imports no torch."""

from frugalign.base.specs import lazy_exports

_HOME = {
    "StoredProxyConfig": "config",
    "StoredProxyOptions": "options",
    "StoredProxyTrainer": "trainer",
    "train_stored": "run",
}
__all__ = list(_HOME)

__getattr__ = lazy_exports(__name__, _HOME)
