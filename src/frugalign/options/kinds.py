"""Kinds of option values: what each allows, and its wording in error messages. No torch."""

from __future__ import annotations

import json
import math
import os
import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from numbers import Real
from typing import Any

from frugalign.base.template_arguments import NO_OTHER_TEMPLATE, SET_HERE

LARGEST = 1e12
"""No number may be larger in size: products of such numbers overflow float32, and a run would be silently wrong."""
LARGEST_WHOLE = 2**31 - 1
MAX_TEXT = 4096
"""Characters of a name or path."""
MAX_PART = 255
"""Bytes between two slashes of a path, as file systems allow."""


@dataclass(frozen=True)
class Kind:
    """A rule for one number. Every kind refuses NaN, infinity, and numbers beyond `LARGEST` or `LARGEST_WHOLE`.

    `must_be`: the rule in words, after "it must be". `allows`: whether a finite number obeys it. `whole`: integers
    only. `largest`: the largest size.
    """

    must_be: str
    allows: Callable[[float], bool] = lambda _: True
    whole: bool = False
    largest: float | None = None

    def refusal(self, value: Any) -> str | None:
        """What `value` must be instead, in words. None if it obeys the rule."""
        if isinstance(value, bool) or not isinstance(value, Real):
            return "a whole number" if self.whole else "a number"
        try:
            number = float(value)
        except OverflowError:  # an integer of more than 308 digits
            return self._at_most
        if not math.isfinite(number):
            return self.must_be
        if self.whole and number != int(number):
            return "a whole number"
        if not self.allows(number):
            return self.must_be
        return None if abs(number) <= self._largest else self._at_most

    @property
    def _largest(self) -> float:
        return self.largest or (LARGEST_WHOLE if self.whole else LARGEST)

    @property
    def _at_most(self) -> str:
        largest = f"{self._largest:,}" if self.whole else f"{self._largest:g}"
        return f"{self.must_be} and no larger than {largest}"


class TextKind(Kind):
    """A rule for one text."""


@dataclass(frozen=True)
class _Name(TextKind):
    """A name or a path: text on one line that a file system can hold."""

    may_be_empty: bool = False

    def refusal(self, value: Any) -> str | None:
        if self.may_be_empty and value == "":
            return None
        if not isinstance(value, (str, os.PathLike)) or not str(value).strip():
            return self.must_be
        text = str(value)
        if len(text) > MAX_TEXT or any(len(part.encode("utf-8", "replace")) > MAX_PART for part in text.split("/")):
            return f"{self.must_be} of at most {MAX_PART} bytes between slashes"
        if any(unicodedata.category(character) in ("Cc", "Cs") for character in text):
            return f"{self.must_be} without control characters, in UTF-8"
        return None


class _Text(TextKind):
    """Any text that can be written to a file."""

    def refusal(self, value: Any) -> str | None:
        if not isinstance(value, str):
            return self.must_be
        if "\0" in value or any(unicodedata.category(character) == "Cs" for character in value):
            return f"{self.must_be} without NUL, in UTF-8"
        return None


class _TemplateArguments(Kind):
    def refusal(self, value: Any) -> str | None:
        if not isinstance(value, Mapping) or not all(isinstance(name, str) for name in value):
            return self.must_be
        if "chat_template" in value:
            return f"{self.must_be} without chat_template: {NO_OTHER_TEMPLATE}"
        if taken := [name for name in SET_HERE if name in value]:
            return f"{self.must_be} without {taken[0]}, which every verb sets itself"
        try:
            json.dumps(dict(value), allow_nan=False)
        except (ValueError, TypeError, RecursionError):
            return f"{self.must_be} that JSON can hold"
        return None


FINITE = Kind("a finite number")
POSITIVE = Kind("above 0", lambda x: x > 0)
NON_NEGATIVE = Kind("at least 0", lambda x: x >= 0)
NON_POSITIVE = Kind("at most 0", lambda x: x <= 0)

TEMPERATURE = Kind("above 0", lambda x: x >= 1e-4)
"""What divides logits or rewards. Below 0.0001 they would overflow; greedy decoding is another option."""
LEARNING_RATE = Kind("at least 0", lambda x: x >= 0, largest=100)

SHARE = Kind("between 0 and 1", lambda x: 0 <= x <= 1)
"""A share, 0 and 1 included."""
PROBABILITY = Kind("above 0 and at most 1", lambda x: 0 < x <= 1)
BELOW_ONE = Kind("at least 0 and below 1", lambda x: 0 <= x < 1)
LABEL_NOISE = Kind("above 0 and below 0.5", lambda x: 0 < x < 0.5)
PART = Kind("above 0 and below 1", lambda x: 0 < x < 1)
"""A part of a whole, neither none nor all of it, such as held-out prompts."""

WHOLE = Kind("a whole number", whole=True)
COUNT = Kind("at least 1", lambda x: x >= 1, whole=True)
SIZE = Kind("at least 1", lambda x: x >= 1, whole=True, largest=1 << 16)
"""The width of a layer or the rank of an adapter."""
WORKERS = Kind("at least 0", lambda x: x >= 0, whole=True, largest=1024)
"""Processes or threads."""
LAYER = Kind("a whole number", whole=True, largest=10_000)
COUNT_OR_ZERO = Kind("at least 0", lambda x: x >= 0, whole=True)
SEED = Kind("at least 0 and below 2^32", lambda x: 0 <= x < 2**32, whole=True, largest=2**32)
MAX_STEPS = Kind("at least 1, or -1 for whole epochs", lambda x: x >= 1 or x == -1, whole=True)
WARM_UP = Kind(
    "a whole number of at least 0, or a fraction of all steps below 1", lambda x: 0 <= x < 1 or (x >= 1 and x == int(x))
)
STEPS_OR_FRACTION = Kind(
    "a whole number of at least 1, or a fraction of all steps above 0 and below 1",
    lambda x: 0 < x < 1 or (x >= 1 and x == int(x)),
)

PATH = _Name("a path")
NAME = _Name("a name or a path")
"""The kind of a text without another one."""
NAME_OR_EMPTY = _Name("a name or a path", may_be_empty=True)
TEXT = _Text("text")
"""Free text, such as a prompt."""
TEMPLATE_ARGUMENTS = _TemplateArguments("a mapping")
