"""One decoding loop for rollouts, evaluation and serving. It knows a proxy only as a `Guide`."""

from frugalign.base.specs import lazy_exports

_HOME = {
    "Emission": "chooser",
    "Guide": "chooser",
    "Generation": "loop",
    "LoopOptions": "loop",
    "SamplingParams": "loop",
    "Step": "loop",
    "generate": "loop",
    "Noise": "noise",
    "row_keys": "noise",
    "Reference": "log_probs",
    "compare_sequences": "log_probs",
    "sequence_kl": "log_probs",
    "sequence_log_probs": "log_probs",
}
__all__ = list(_HOME)


__getattr__ = lazy_exports(__name__, _HOME)
