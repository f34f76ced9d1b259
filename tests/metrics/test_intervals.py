"""Intervals: worked numbers, clustering, and that they cover the truth about as often as they say."""

import numpy as np
import pytest

from frugalign.metrics import Estimate, mean_interval, paired_difference, ratio_interval, win_rate


def test_mean_of_what_applies() -> None:
    estimate = mean_interval([1.0, None, 3.0])
    assert estimate is not None
    assert (estimate.mean, estimate.n) == (2.0, 2)
    assert 1.0 <= estimate.ci_low <= 2.0 <= estimate.ci_high <= 3.0


def test_nothing_applies() -> None:
    assert mean_interval([]) is None
    assert mean_interval([None, None]) is None
    assert ratio_interval([1.0], [0.0]) is None


def test_constant_values_have_no_width() -> None:
    assert mean_interval([0.5] * 7) == Estimate(0.5, 0.5, 0.5, 7)


def test_same_seed_same_interval() -> None:
    values = list(np.random.default_rng(1).normal(size=50))
    assert mean_interval(values, seed=3) == mean_interval(values, seed=3) != mean_interval(values, seed=4)


def test_ratio_is_of_sums() -> None:
    """(2 + 6) nats over (1 + 3) tokens is 2 a token."""
    estimate = ratio_interval([2.0, 6.0], [1.0, 3.0])
    assert estimate == Estimate(2.0, 2.0, 2.0, 2)


def test_repeats_of_a_prompt_do_not_narrow_the_interval() -> None:
    """Each prompt's value four times over: by row the interval is half as wide, by prompt it stays what it was."""
    values = list(np.random.default_rng(0).normal(size=100))
    once = mean_interval(values)
    rows, prompts = [v for v in values for _ in range(4)], [p for p in range(100) for _ in range(4)]
    clustered, naive = mean_interval(rows, prompts), mean_interval(rows)
    assert once and clustered and naive
    width = once.ci_high - once.ci_low
    assert clustered.ci_high - clustered.ci_low == pytest.approx(width, rel=0.05)
    assert naive.ci_high - naive.ci_low == pytest.approx(width / 2, rel=0.1)


def test_coverage() -> None:
    """200 samples of 60 from a skewed law: about 95 % of the intervals hold its mean (sd of the share 1.5 points)."""
    rng = np.random.default_rng(0)
    held = 0
    for trial in range(200):
        estimate = mean_interval(list(rng.exponential(size=60)), n_resamples=400, seed=trial)
        assert estimate is not None
        held += estimate.ci_low <= 1.0 <= estimate.ci_high
    assert 0.88 <= held / 200 <= 0.98


def test_win_rate_counts_ties_half() -> None:
    """One win, one loss, two ties: (1 + 0 + ½ + ½) / 4 = ½; the row without a score does not count."""
    estimate = win_rate([1.0, 0.0, 2.0, 0.1 + 0.2, None], [0.0, 1.0, 2.0, 0.3, 1.0])
    assert estimate is not None and (estimate.mean, estimate.n) == (0.5, 4)


def test_paired_difference_sees_what_the_means_hide() -> None:
    base = list(np.random.default_rng(0).normal(scale=10.0, size=50))
    estimate = paired_difference([b + 0.1 for b in base], base)
    assert estimate is not None
    assert estimate.mean == pytest.approx(0.1) and estimate.ci_low == pytest.approx(0.1)
