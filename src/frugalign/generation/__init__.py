"""One decoding loop for rollouts, evaluation and serving; a proxy is known here only as a `Guide`."""

from typing import Any

_HOME = {
    "Emission": "guide",
    "Guide": "guide",
    "Generation": "loop",
    "SamplingParams": "loop",
    "Step": "loop",
    "generate": "loop",
    "Noise": "noise",
    "row_keys": "noise",
    "sequence_kl": "scoring",
    "sequence_log_probs": "scoring",
}
__all__ = list(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
