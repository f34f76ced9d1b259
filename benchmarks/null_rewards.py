"""Rewards with nothing to learn, for the null controls: numbers that no text has anything to do with, and a reward dealt out to the wrong responses."""

from __future__ import annotations

import hashlib
import random
from typing import Any

from frugalign.sandbox import gold


def noise(completions: list[str], **_: Any) -> list[float]:
    """A number for every response by chance: the same text gets another one in another batch or place, so that there is nothing to be found."""
    draw = random.Random(hashlib.sha256("\n".join(map(str, completions)).encode()).digest())
    return [draw.gauss(0.0, 1.0) for _ in completions]


def shuffled(prompts: list[Any], completions: list[Any], **columns: Any) -> list[float | None]:
    """The exact reward, dealt out anew within the batch: its distribution is right and every advantage is another response's."""
    values = list(gold(prompts=prompts, completions=completions, **columns))
    random.Random(hashlib.sha256("\n".join(map(str, completions)).encode()).digest()).shuffle(values)
    return values
