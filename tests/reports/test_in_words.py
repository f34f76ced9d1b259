"""Worked values of how numbers stand on a page."""

import pytest

from frugalign.base.wording import pluralize
from frugalign.reports.in_words import interval, number, precise_interval, prompt_in_words, scores_in_words, signed


@pytest.mark.parametrize(
    ("value", "plain", "with_sign"),
    [(0.256, "0.26", "+0.26"), (-0.256, "−0.26", "−0.26"), (-0.001, "0.00", "−0.00"), (1234.5, "1,234", "+1,234")],
)
def test_numbers(value: float, plain: str, with_sign: str) -> None:
    assert (number(value), signed(value)) == (plain, with_sign)


def test_intervals() -> None:
    estimate = {"mean": -0.5, "ci_low": -1.0, "ci_high": 0.125, "n": 8}
    assert interval(estimate) == "−0.50 [−1.00, 0.12]"
    assert interval(estimate, with_sign=True) == "−0.50 [−1.00, +0.12]"
    assert precise_interval({"mean": 0.01234, "ci_low": 0.01134, "ci_high": 0.01334}) == "0.0123 [0.0113, 0.0133]"
    assert interval(None) == precise_interval(None) == "—"


def test_prompts_and_rewards() -> None:
    assert (
        prompt_in_words([{"role": "system", "content": "a"}, {"role": "user", "content": "b"}]) == "system: a\nuser: b"
    )
    assert scores_in_words({"gold": -0.5, "manners": None}) == "gold −0.5, manners —"


def test_counts() -> None:
    assert [pluralize(n, "round") for n in (0, 1, 2, 1000)] == ["0 rounds", "1 round", "2 rounds", "1,000 rounds"]
    assert pluralize(2, "reply", "replies") == "2 replies"
