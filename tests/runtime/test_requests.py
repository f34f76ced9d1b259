"""What a request may ask for."""

from typing import Any

import pytest

from frugalign_runtime import ProxyError
from frugalign_runtime.requests import read_guidance

NAMES = ["safe", "terse", "a:b"]


@pytest.mark.parametrize(
    ("text", "strength", "wanted"),
    [
        ("safe", None, [(0, 1.0)]),
        ("terse:0.5", None, [(1, 0.5)]),
        ("safe", 2, [(0, 2.0)]),
        ("safe", "0.25", [(0, 0.25)]),
        ("safe:0.7+terse", 0.1, [(0, 0.7), (1, 0.1)]),
        ("terse:0+safe:1e-1", None, [(1, 0.0), (0, 0.1)]),
        ("a:b", None, [(2, 1.0)]),
        ("a:b:3+safe", None, [(2, 3.0), (0, 1.0)]),
        ("", 0.5, []),
        (None, None, []),
    ],
)
def test_it_is_read(text: Any, strength: Any, wanted: list[tuple[int, float]]) -> None:
    assert read_guidance(text, NAMES, strength) == wanted


@pytest.mark.parametrize(
    ("text", "strength", "says"),
    [
        ("kind", None, "There is no proxy 'kind'; there are safe, terse, a:b"),
        ("safe+", None, "There is no proxy ''"),
        ("safe:x", None, "strength must be a number that is at least 0, not 'x'"),
        ("safe:-1", None, "not '-1'"),
        ("safe:nan", None, "not 'nan'"),
        ("safe:inf", None, "not 'inf'"),
        ("safe", True, "not True"),
        ("safe", [1], r"not \[1\]"),
        ("safe+safe:2", None, "'safe' is named twice"),
        (3, None, "proxy must be text such as safe:0.7, not 3"),
    ],
)
def test_what_is_refused(text: Any, strength: Any, says: str) -> None:
    with pytest.raises(ProxyError, match=says):
        read_guidance(text, NAMES, strength)
