"""Counts and times in messages."""

from __future__ import annotations

import pytest

from frugalign.base.quantities import duration, in_short


@pytest.mark.parametrize(
    ("number", "words"),
    [(0, "0"), (950, "950"), (999.6, "1.0 k"), (1234, "1.2 k"), (9960, "10 k"), (12_400, "12 k"), (3_932_160, "3.9 M"), (2.1e9, "2.1 G"), (5e12, "5,000 G")],
)  # fmt: skip
def test_a_count_in_short(number: float, words: str) -> None:
    assert in_short(number) == words


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.04, "0.0 s"), (9.94, "9.9 s"), (9.96, "10 s"), (59.4, "59 s"), (59.6, "1 min"), (80, "1 min 20 s"), (3600, "1 h"), (7510, "2 h 5 min"), (90_000, "1 day 1 h"), (270_000, "3 days 3 h")],
)  # fmt: skip
def test_a_duration(seconds: float, words: str) -> None:
    assert duration(seconds) == words
