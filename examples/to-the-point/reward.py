"""The reward of the example `to the point`: a finished answer of one or two sentences. A program checks it, so it cannot be flattered."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

FEWEST, ENOUGH, MOST = 5, 25, 60
"""Words. An answer of at most `ENOUGH` earns everything; one of `MOST` or more earns nothing."""


def reward(completions: list[Any], **_: Any) -> list[float]:
    """Between 0 and 1, for texts or for messages."""
    return [score(each if isinstance(each, str) else each[-1]["content"]) for each in completions]


def score(text: str) -> float:
    """0 for an answer that is cut, empty, or repeats itself."""
    words = text.lower().split()
    if len(words) < FEWEST or text.rstrip()[-1] not in ".!?":
        return 0.0
    pairs = list(pairwise(words))
    fresh = len(set(pairs)) / len(pairs)
    return fresh * min(1.0, max(0.0, (MOST - len(words)) / (MOST - ENOUGH)))
