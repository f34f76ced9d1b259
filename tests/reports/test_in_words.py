"""Worked values of how numbers stand on a page."""

import pytest

from frugalign.reports.in_words import (
    interval,
    number,
    precise_interval,
    prompt_in_words,
    scores_in_words,
    setting_in_words,
    signed,
    true_minus,
)


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
    assert precise_interval({"mean": 0.01234, "ci_low": 0.01134, "ci_high": 0.01334}) == "0.012 [0.011, 0.013]"
    assert precise_interval(estimate | {"n": 50}) == "−0.50 [−1.00, 0.12]"
    assert precise_interval(estimate) == "−0.50 [−1.00, 0.12], n = 8"
    assert precise_interval(estimate | {"n": 60}, num_samples=2) == "−0.50 [−1.00, 0.12], n = 60"
    assert interval(None) == precise_interval(None) == "—"


def test_prompts_and_rewards() -> None:
    assert (
        prompt_in_words([{"role": "system", "content": "a"}, {"role": "user", "content": "b"}]) == "system: a\nuser: b"
    )
    assert scores_in_words({"gold": -0.5, "manners": None}) == "gold −0.5, manners —"


def test_minus_signs_are_true_ones_before_numbers_only() -> None:
    assert true_minus("log-likelihood -0.03 [-1, 2]") == "log-likelihood −0.03 [−1, 2]"
    assert precise_interval({"mean": -0.5, "ci_low": -1.0, "ci_high": 0.0}) == "−0.50 [−1.00, 0.00]"
    assert scores_in_words({"gold": -0.0}) == "gold 0"


def test_settings() -> None:
    assert setting_in_words(["a:b", 0.5]) == "a:b, 0.5"
    assert setting_in_words({"generated_tokens": 8}) == "generated_tokens: 8"
    assert (setting_in_words(None), setting_in_words(True), setting_in_words([])) == ("—", "true", "")
