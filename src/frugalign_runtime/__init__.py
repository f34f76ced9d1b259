"""Run exported proxies inside any engine. It needs numpy, and nothing else: torch is used where the engine's arrays are torch's.

    from frugalign_runtime import load

    proxies = load({"safe": "exported/safe", "terse": "exported/terse"})
    log_pi = proxies.judge(logits, hidden, proxy=[0, 1, -1], strength=[1.0, 0.5, 0.0])

`frugalign export` writes the folders. Nothing here imports transformers or frugalign, so an engine may pin what it likes.
"""

from frugalign_runtime.bundle import Bundle
from frugalign_runtime.errors import ProxyError
from frugalign_runtime.judge import Proxies, load

__all__ = ["Bundle", "Proxies", "ProxyError", "load"]
