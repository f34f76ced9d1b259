"""Frozen base models: loading them, telling them apart, and reading what their LM head reads."""

from typing import Any

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


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
