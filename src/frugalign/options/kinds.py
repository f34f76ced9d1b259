"""Kinds of option values: what each allows, and its wording in error messages. No torch."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Real
from typing import Any


@dataclass(frozen=True)
class Kind:
    """A rule for one value. Every kind of number refuses NaN and infinity.

    `must_be`: the rule in words, after "it must be". `allows`: whether a finite number obeys it. `whole`: integers
    only.
    """

    must_be: str
    allows: Callable[[float], bool] = lambda _: True
    whole: bool = False

    def refusal(self, value: Any) -> str | None:
        """What `value` must be instead, in words. None if it obeys the rule."""
        if isinstance(value, bool) or not isinstance(value, Real):
            return "a whole number" if self.whole else "a number"
        number = float(value)
        if not math.isfinite(number):
            return self.must_be
        if self.whole and number != int(number):
            return "a whole number"
        return None if self.allows(number) else self.must_be


class _Path(Kind):
    def refusal(self, value: Any) -> str | None:
        return None if isinstance(value, (str, os.PathLike)) and str(value).strip() else self.must_be


FINITE = Kind("a finite number")
POSITIVE = Kind("above 0", lambda x: x > 0)
NON_NEGATIVE = Kind("at least 0", lambda x: x >= 0)
NON_POSITIVE = Kind("at most 0", lambda x: x <= 0)

SHARE = Kind("between 0 and 1", lambda x: 0 <= x <= 1)
"""A share, 0 and 1 included."""
PROBABILITY = Kind("above 0 and at most 1", lambda x: 0 < x <= 1)
BELOW_ONE = Kind("at least 0 and below 1", lambda x: 0 <= x < 1)
PART = Kind("above 0 and below 1", lambda x: 0 < x < 1)
"""A part of a whole, neither none nor all of it, such as held-out prompts."""

WHOLE = Kind("a whole number", whole=True)
COUNT = Kind("at least 1", lambda x: x >= 1, whole=True)
COUNT_OR_ZERO = Kind("at least 0", lambda x: x >= 0, whole=True)
SEED = Kind("at least 0 and below 2^32", lambda x: 0 <= x < 2**32, whole=True)
MAX_STEPS = Kind("at least 1, or -1 for whole epochs", lambda x: x >= 1 or x == -1, whole=True)
STEPS_OR_FRACTION = Kind(
    "a whole number of at least 1, or a fraction of all steps above 0 and below 1",
    lambda x: 0 < x < 1 or (x >= 1 and x == int(x)),
)

PATH = _Path("a path")
