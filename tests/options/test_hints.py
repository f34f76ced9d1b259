"""Type hints taken apart."""

from __future__ import annotations

from enum import Enum
from typing import Any, Literal

import pytest

from frugalign.options.hints import choices, describe, list_item, scalar, without_none


class Speed(Enum):
    FAST = "fast"
    SLOW = "slow"


def test_types_in_words() -> None:
    assert describe(int | None) == "a whole number"
    assert describe(list[str] | None) == "a list"
    assert describe(Literal["a", "b"] | None) == "one of a, b"
    assert describe(str | dict[str, Any]) == "text or a mapping"


@pytest.mark.parametrize(
    ("hint", "one", "item", "words"),
    [
        (int, int, None, None),
        (float | None, float, None, None),
        (str | list[float] | None, str, float, None),
        (list[int], list[int], int, None),
        (Literal["a", "b"] | None, Literal["a", "b"], None, ("a", "b")),
        (Speed | None, Speed, None, ("fast", "slow")),
    ],
)
def test_the_parts_of_a_type(hint: Any, one: Any, item: Any, words: Any) -> None:
    assert (scalar(hint), list_item(hint), choices(hint)) == (one, item, words)


def test_a_type_without_none() -> None:
    assert without_none(int | None) is int
    assert without_none(str | list[str] | None) == str | list[str]
    assert without_none(Literal["a"] | None) == Literal["a"]
