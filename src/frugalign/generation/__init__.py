"""One decoding loop for rollouts, evaluation and serving; a proxy is known here only as a `Guide`."""

from frugalign.names import fetched_on_use

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


__getattr__ = fetched_on_use(__name__, _HOME)
