"""Frozen base models: loading them, telling them apart, and reading what their LM head reads."""

from frugalign.names import fetched_on_use

_HOME = {
    "BaseFingerprint": "identity",
    "fingerprint": "identity",
    "LoadedModel": "loading",
    "load_model": "loading",
    "Forward": "forward",
    "StepOutput": "forward",
    "output_embeddings": "forward",
}
__all__ = list(_HOME)


__getattr__ = fetched_on_use(__name__, _HOME)
