"""Where a frozen base runs: loading, fingerprints, and the LM head's input."""

from frugalign.base.specs import lazy_exports

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


__getattr__ = lazy_exports(__name__, _HOME)
