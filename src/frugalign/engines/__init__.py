"""Where a frozen base runs: loading it, telling it apart, and reading what its LM head reads."""

from frugalign.base.specs import fetched_on_use

_HOME = {
    "BaseFingerprint": "fingerprints",
    "fingerprint": "fingerprints",
    "LoadedModel": "loading",
    "load_model": "loading",
    "Capabilities": "engine",
    "Engine": "engine",
    "Sequences": "engine",
    "StepOutput": "engine",
    "Forward": "transformers",
    "TransformersEngine": "transformers",
    "output_embeddings": "transformers",
}
__all__ = list(_HOME)


__getattr__ = fetched_on_use(__name__, _HOME)
