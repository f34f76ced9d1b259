"""Words and YAML values as typed values."""

from __future__ import annotations

from enum import Enum
from typing import Any, Literal

import pytest

from frugalign.cli.values import from_text, from_yaml


class Kind(Enum):
    FAST = "fast"
    SLOW = "slow"


@pytest.mark.parametrize(
    ("text", "hint", "value"),
    [
        ("3", int, 3),
        ("1e-3", float, 1e-3),
        ("true", bool, True),
        ("no", bool, False),
        ("none", float | None, None),
        ("0.5", float | None, 0.5),
        ("none", str, "none"),
        ("a", str | list[str], "a"),
        ("3", int | str, 3),
        ("epoch", int | str, "epoch"),
        ("b", Literal["a", "b"], "b"),
        ("2", Literal[1, 2] | None, 2),
        ("fast", Kind | str, Kind.FAST),
        ('{"a": 1}', dict[str, Any] | str | None, {"a": 1}),
        ("offload", dict[str, Any] | str | None, "offload"),
    ],
)
def test_words(text: str, hint: Any, value: Any) -> None:
    found = from_text(text, hint)
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize(
    ("text", "hint"), [("x", int), ("1.5", int), ("x", float), ("maybe", bool), ("c", Literal["a", "b"]), ("[1]", dict)]
)
def test_words_of_another_type(text: str, hint: Any) -> None:
    with pytest.raises(ValueError, match="is not"):
        from_text(text, hint)


@pytest.mark.parametrize(
    ("value", "hint", "expected"),
    [
        (3, int, 3),
        (3, float, 3.0),
        (1e3, int, 1000),
        (-(10**400), int, -(10**400)),
        ("3e-4", float, 3e-4),  # YAML 1.1 reads it as text
        (None, int | None, None),
        (True, bool, True),
        (["a"], list[str], ["a"]),
        ("a", list[str], ["a"]),
        ([1, 2], list[float] | None, [1.0, 2.0]),
        ("a", Literal["a", "b"], "a"),
        ({"a": 1}, dict[str, Any] | str | None, {"a": 1}),
    ],
)
def test_yaml(value: Any, hint: Any, expected: Any) -> None:
    found = from_yaml(value, hint)
    assert found == expected and type(found) is type(expected)


@pytest.mark.parametrize(
    ("value", "hint"),
    [
        (True, int),
        (1.5, int),
        (3, str),
        ("x", int),
        (1, bool),
        ([1], float),
        (None, int),
        ("c", Literal["a"]),
        ([1], list[str]),
        (10**400, float),
    ],
)
def test_yaml_of_another_type(value: Any, hint: Any) -> None:
    with pytest.raises(ValueError, match="is not"):
        from_yaml(value, hint)
