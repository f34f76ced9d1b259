"""The one exception whose message is written for the user."""

from __future__ import annotations


class ProxyError(ValueError):
    """A bundle that cannot be read, or that does not fit the engine's model. The message is one sentence."""
