"""Grammar for messages, and the known name that a mistyped one is closest to."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence


def pluralize(number: int, noun: str, plural: str = "") -> str:
    """`1 round`, `2 rounds`, `1,000 rounds`; `plural`: an irregular plural."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def did_you_mean(given: str, known: Iterable[str]) -> str:
    """`; did you mean learning_rate?` after a mistyped name, or nothing.

    A typo changes letters. A name with another word in it (`max_completion_length` beside `max_prompt_length`) means something else.
    """
    alike = [name for name in known if _is_typo(given, name)]
    near = difflib.get_close_matches(given, alike, n=1)
    return f"; did you mean {near[0]}?" if near else ""


def _is_typo(given: str, name: str) -> bool:
    """Whether each word of `given` resembles one of `name`, or both are alike but for underscores."""
    words = name.strip("-").split("_")
    if difflib.SequenceMatcher(None, given.replace("_", ""), name.replace("_", "")).ratio() > 0.9:
        return True
    return all(_resembles_one(word, words) for word in given.strip("-").split("_"))


def _resembles_one(word: str, words: Sequence[str]) -> bool:
    return bool(difflib.get_close_matches(word, words, n=1)) or sorted(word) in map(sorted, words)
