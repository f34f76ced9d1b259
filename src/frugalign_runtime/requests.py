"""What a request asks for, as text: `safe`, `safe:0.7`, `safe:0.7+terse`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from frugalign_runtime.errors import ProxyError

Guidance = list[tuple[int, float]]
"""Numbers of proxies with their strengths. Several compose, and none is the base."""


def read_guidance(text: Any, names: Sequence[str], strength: Any = None) -> Guidance:
    """The proxies and strengths of a request.

    Args:
        text: `name`, `name:strength`, or several of them with `+` between. None or empty: the base.
        names: of the proxies that are loaded.
        strength: of those without one of their own. Default: 1.

    Raises:
        ProxyError: the text cannot be read, a proxy is unknown or named twice, or a strength is below 0 or not a number.
    """
    default = 1.0 if strength is None else _strength(strength)
    if text is None or text == "":
        return []
    if not isinstance(text, str):
        raise ProxyError(f"proxy must be text such as {names[0]}:0.7, not {text!r}.")
    found: Guidance = []
    for part in text.split("+"):
        # A name may hold a colon, so the whole of it is tried first.
        name, _, own = (part, "", "") if part in names or ":" not in part else part.rpartition(":")
        if name not in names:
            raise ProxyError(f"There is no proxy {name!r}; there are {', '.join(names)}.")
        number = names.index(name)
        if number in [each for each, _ in found]:
            raise ProxyError(f"The proxy {name!r} is named twice.")
        found.append((number, _strength(own) if own else default))
    return found


def _strength(value: Any) -> float:
    try:
        found = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        found = math.nan
    if not (math.isfinite(found) and found >= 0):
        raise ProxyError(f"strength must be a number that is at least 0, not {value!r}.")
    return found
