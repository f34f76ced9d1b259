"""Tests of differences: published and hand-worked numbers, errors kept at what is promised, and length taken out but nothing else."""

import itertools

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression

from frugalign.metrics import Estimate, holm, length_controlled_win_rate, paired_p_value, wilson_interval
from frugalign.metrics.testing import _fit


def test_wilson_against_a_published_number() -> None:
    """81 of 263: 0.2553 to 0.3662 (Newcombe 1998, table I, method 3)."""
    estimate = wilson_interval(81, 263)
    assert estimate is not None and estimate.n == 263
    assert estimate.mean == pytest.approx(81 / 263)
    assert (estimate.ci_low, estimate.ci_high) == (pytest.approx(0.2553, abs=5e-5), pytest.approx(0.3662, abs=5e-5))


def test_wilson_at_the_ends() -> None:
    """No success of 10: from 0 to z²/(10 + z²) = 3.8415/13.8415 = 0.2775, and the mirror of it."""
    none, all_of_them = wilson_interval(0, 10), wilson_interval(10, 10)
    assert none is not None and all_of_them is not None
    assert none.ci_low == 0.0 and none.ci_high == pytest.approx(0.27754, abs=1e-5)
    assert all_of_them.ci_high == 1.0 and all_of_them.ci_low == pytest.approx(1 - none.ci_high)


def test_wilson_takes_ties_as_halves() -> None:
    estimate = wilson_interval(2.5, 5)
    assert estimate is not None and estimate.mean == 0.5
    assert estimate.ci_low + estimate.ci_high == pytest.approx(1.0)
    narrow, wide = wilson_interval(5, 10, level=0.8), wilson_interval(5, 10, level=0.99)
    assert narrow is not None and wide is not None and wide.ci_low < narrow.ci_low


def test_wilson_refuses_what_is_no_share() -> None:
    assert wilson_interval(0, 0) is None
    with pytest.raises(ValueError, match="not a share"):
        wilson_interval(11, 10)


def test_p_value_by_hand() -> None:
    """1, 2, −1: of the 8 patterns of signs the sums are ±2, ±4, 0, 0 and ±2, so 6 are as far from 0 as 2."""
    assert paired_p_value([1.0, 2.0, None, -1.0]) == 6 / 8
    assert paired_p_value([1.0, 1.0, 1.0, 1.0, 1.0]) == 2 / 32


def test_rounding_does_not_hide_equal_patterns() -> None:
    """The sum is 1.4; only the first one's other sign gives more, 1.8: with their mirror images 4 of 16. In floats not every 1.4 is the same."""
    assert paired_p_value([-0.2, 0.4, 0.9, 0.3]) == 4 / 16


def test_drawn_patterns_agree_with_all_of_them() -> None:
    differences = np.random.default_rng(0).normal(0.4, 1.0, size=14)
    signs = np.array(list(itertools.product((1, -1), repeat=14)))
    exact = float(np.mean(np.abs(signs @ differences) >= abs(differences.sum()) - 1e-9))
    drawn = paired_p_value(list(differences), n_permutations=40_000)
    assert 0.01 < exact < 0.9 and drawn == pytest.approx(exact, abs=4 * (exact / 40_000) ** 0.5)


def test_rows_of_a_prompt_flip_together() -> None:
    """Three prompts with ten equal rows each are three differences, not thirty: 2 of 8 patterns."""
    rows, prompts = [1.0] * 30, [prompt for prompt in range(3) for _ in range(10)]
    assert paired_p_value(rows, prompts) == 2 / 8
    by_row = paired_p_value(rows)
    assert by_row is not None and by_row < 0.001


def test_p_values_are_uniform_where_there_is_no_difference() -> None:
    """400 samples under the null: shares below 0.05, 0.2 and 0.5 within four standard errors."""
    rng = np.random.default_rng(0)
    found = np.array([paired_p_value(list(rng.standard_t(3, size=20)), n_permutations=400) for _ in range(400)])
    for level in (0.05, 0.2, 0.5):
        assert np.mean(found <= level) == pytest.approx(level, abs=4 * (level * (1 - level) / 400) ** 0.5)


def test_an_effect_is_seen_and_never_certain() -> None:
    differences = list(np.random.default_rng(1).normal(1.0, 1.0, size=60))
    assert paired_p_value(differences, n_permutations=999) == 1 / 1000
    assert paired_p_value(differences, seed=1) == paired_p_value(differences, seed=1)


def test_no_row_and_no_difference() -> None:
    assert paired_p_value([]) is None and paired_p_value([None]) is None
    assert paired_p_value([0.0] * 30) == 1.0


def test_holm_by_hand() -> None:
    """Sorted 0.005, 0.01, 0.03, 0.04 times 4, 3, 2, 1: 0.02, 0.03, 0.06 and 0.04, which may not fall below 0.06."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    by_name = holm({"a": 0.01, "b": 0.04, "c": None, "d": 0.03, "e": 0.005})
    assert list(by_name) == ["a", "b", "c", "d", "e"] and by_name["c"] is None
    assert by_name["e"] == pytest.approx(0.02) and by_name["b"] == pytest.approx(0.06)


def test_holm_keeps_the_order_and_never_lowers() -> None:
    p_values = list(np.random.default_rng(0).uniform(size=40))
    adjusted = np.array(holm(p_values), dtype=float)
    assert np.all(adjusted >= p_values) and adjusted.max() <= 1
    assert np.all(np.diff(adjusted[np.argsort(p_values)]) >= 0)
    assert holm([0.3]) == [0.3] and holm([]) == []
    with pytest.raises(ValueError, match="0, 1"):
        holm([0.1, 1.1])


def judged(
    win_log_odds: float, by_length: float, n: int, seed: int, shift: float = 150.0
) -> tuple[list[float | None], list[float | None]]:
    """Verdicts of a judge with a taste for length over answers that are mostly longer (`shift` characters, sd 200)."""
    rng = np.random.default_rng(seed)
    difference = rng.normal(shift, 200.0, size=n)
    p = 1 / (1 + np.exp(-(win_log_odds + by_length * np.tanh(difference / 200.0))))
    return list((rng.uniform(size=n) < p).astype(float)), list(difference)


def test_a_judge_that_only_likes_length() -> None:
    """The longer answer always wins: about ¾ of the rows, and a half once lengths are equal."""
    difference = np.random.default_rng(0).normal(150.0, 200.0, size=400)
    wins = (difference > 0).astype(float)
    estimate = length_controlled_win_rate(list(wins), list(difference))
    assert wins.mean() > 0.7 and estimate is not None
    assert estimate.mean == pytest.approx(0.5, abs=0.12)
    assert estimate.ci_low < 0.5 < estimate.ci_high < 0.72


def test_a_real_preference_survives() -> None:
    wins, difference = judged(np.log(0.75 / 0.25), 2.0, 1000, seed=0)
    estimate = length_controlled_win_rate(wins, difference)
    assert estimate is not None and estimate.mean == pytest.approx(0.75, abs=0.06)
    assert estimate.ci_low > 0.65


def test_without_a_length_effect_it_is_the_win_rate() -> None:
    wins, difference = judged(np.log(0.6 / 0.4), 0.0, 2000, seed=0, shift=0.0)
    estimate = length_controlled_win_rate(wins, difference, n_resamples=200)
    assert estimate is not None
    assert estimate.mean == pytest.approx(np.mean(np.array(wins, dtype=float)), abs=0.01)


def test_equal_lengths_tell_nothing() -> None:
    """4 wins and a tie of 6 rows are 0.75; ridge 0.01 moves it by less than a hundredth."""
    for length in (0.0, 7.0):
        estimate = length_controlled_win_rate([1.0, 1.0, 1.0, 1.0, 0.5, 0.0, None], [length] * 7)
        assert estimate is not None and estimate.n == 6 and estimate.mean == pytest.approx(0.75, abs=0.01)


def test_separated_rows_give_finite_numbers() -> None:
    for wins in ([1.0] * 30, [0.0] * 30, [1.0] * 15 + [0.0] * 15):
        estimate = length_controlled_win_rate(wins, [float(30 - row) for row in range(30)])
        assert estimate is not None
        assert 0 < estimate.ci_low <= estimate.mean <= estimate.ci_high < 1
    assert length_controlled_win_rate([None], [1.0]) is None
    assert length_controlled_win_rate([1.0], [None]) is None


def test_both_sides_see_the_same() -> None:
    """Exchanging the two sides turns `w` into `1 − w`, as a win rate must."""
    wins, difference = judged(0.3, 1.0, 200, seed=2)
    there = length_controlled_win_rate(wins, difference)
    back = length_controlled_win_rate([1 - w for w in wins if w is not None], [-d for d in difference if d is not None])
    assert there is not None and back is not None
    assert there.mean + back.mean == pytest.approx(1.0) and there.ci_low + back.ci_high == pytest.approx(1.0)


def test_repeats_of_a_prompt_do_not_narrow_the_controlled_interval() -> None:
    wins, difference = judged(0.5, 1.0, 80, seed=0)
    prompts = [prompt for prompt in range(80) for _ in range(4)]
    repeated = [w for w in wins for _ in range(4)], [d for d in difference for _ in range(4)]
    once, clustered = length_controlled_win_rate(wins, difference), length_controlled_win_rate(*repeated, prompts)
    by_row = length_controlled_win_rate(*repeated)
    assert once and clustered and by_row

    def width(estimate: Estimate) -> float:
        return estimate.ci_high - estimate.ci_low

    assert width(clustered) == pytest.approx(width(once), rel=0.15)
    assert width(by_row) == pytest.approx(width(once) / 2, rel=0.2)


def test_the_fit_is_the_ridge_logistic_regression_of_scikit_learn() -> None:
    """Ties as two half rows; one penalty of 1/C per coefficient is theirs, so the columns are scaled by its square root."""
    rng = np.random.default_rng(0)
    x: NDArray[np.float64] = rng.uniform(-1, 1, size=60)
    win: NDArray[np.float64] = rng.choice([0.0, 0.5, 1.0], size=60)
    weights = np.stack([np.ones(60), rng.integers(0, 3, size=60).astype(float)])
    scale = np.sqrt([0.01, 0.1])
    design = np.stack([np.ones(60), x], -1) / scale
    for ours, weight in zip(_fit(x, win, weights, np.array([3.0, -3.0])), weights, strict=True):
        theirs = LogisticRegression(C=1.0, fit_intercept=False, tol=1e-10).fit(
            np.concatenate([design, design]),
            [1] * 60 + [0] * 60,
            sample_weight=np.concatenate([weight * win, weight * (1 - win)]),
        )
        assert ours == pytest.approx(theirs.coef_[0] / scale, abs=1e-4)
