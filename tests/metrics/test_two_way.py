"""The crossed interval against a worked table, its limits of one seed or one prompt, and its coverage under random effects of both."""

import math

import numpy as np
import pytest

from frugalign.metrics.two_way import two_way_mean


def test_a_worked_table() -> None:
    """Seeds' means 2, 3, 4 (s_A² = 1, /3, two degrees); prompts' means 2, 3, 4 (the same). The residuals are 0, so both ways together have the
    variance 2/3 and (2/3)²/(2·(1/3)²/2) = 4 degrees.

    t_0.975(2)·√(1/3) = 4.302653·0.577350 = 2.484138; t_0.975(4)·√(2/3) = 2.776445·0.816497 = 2.266958: the seeds' is the wider one. With two degrees
    p = 1 − t/√(t² + 2) at t = 3/√(1/3) = √27: 1 − √(27/29); with four it is smaller.
    """
    found = two_way_mean([[1.0, 2.0, 3.0], [2.0, 3.0, 4.0], [3.0, 4.0, 5.0]])
    assert found is not None and found.p_value is not None
    assert found.estimate.mean == 3.0 and found.estimate.n == 9
    assert found.estimate.ci_high - 3.0 == pytest.approx(2.484138, abs=1e-5)
    assert found.p_value == pytest.approx(1 - math.sqrt(27 / 29), abs=1e-9)


def test_both_ways_together_may_be_the_widest() -> None:
    """Six seeds 1 … 6 and six prompts alike: by either s² = 3.5, /6 = 0.583333, t_0.975(5) = 2.570582; together 1.166667 and ten degrees, 2.228139."""
    table = [[seed + prompt for prompt in range(6)] for seed in range(6)]
    found = two_way_mean([[float(value) for value in row] for row in table])
    assert found is not None
    assert found.estimate.ci_high - 5.0 == pytest.approx(2.228139 * math.sqrt(1.1666667), abs=1e-4)


def test_one_seed_is_the_t_interval_over_prompts() -> None:
    """1, 2, 3: s² = 1, /3; t_0.975(2) = 4.302653."""
    found = two_way_mean([[1.0, 2.0, 3.0]])
    assert found is not None
    assert found.estimate.ci_high == pytest.approx(2 + 4.302653 / math.sqrt(3), abs=1e-5)


def test_what_does_not_apply_is_left_out_by_prompt() -> None:
    found = two_way_mean([[1.0, None, 5.0], [3.0, 9.0, None]])
    assert found is not None and found.estimate.mean == 2.0 and found.estimate.n == 2
    assert two_way_mean([[None], [1.0]]) is None


def test_values_that_do_not_vary() -> None:
    same = two_way_mean([[0.5, 0.5], [0.5, 0.5]])
    zero = two_way_mean([[0.0, 0.0], [0.0, 0.0]])
    assert same is not None and same.p_value is None and same.estimate.ci_low == 0.5
    assert zero is not None and zero.p_value == 1.0
    assert two_way_mean([[0.5]]) is None, "one value says nothing of how sure it is"
    with pytest.raises(ValueError, match="same prompts"):
        two_way_mean([[1.0], [1.0, 2.0]])


def test_none_of_sixty_is_not_certainly_none() -> None:
    """Wilson's upper limit of 0 of 60, whatever the seeds: z²/(60 + z²)."""
    found = two_way_mean([[0.0] * 60] * 3, share=True)
    assert found is not None and found.estimate.ci_low == found.estimate.mean == 0.0
    assert found.estimate.ci_high == pytest.approx(1.959964**2 / (60 + 1.959964**2), abs=1e-6)


@pytest.mark.parametrize(("seed_effect", "prompt_effect"), [(0.0, 0.0), (0.3, 0.0), (0.0, 1.0), (0.3, 1.0)])
def test_coverage_under_random_effects(seed_effect: float, prompt_effect: float) -> None:
    """Three seeds, 40 prompts, a mean of zero: 95 % intervals miss it in at most 6.2 % of 2,000 tables, whichever effect there is; and p is below
    0.05 exactly where they do."""
    rng = np.random.default_rng(0)
    missed = 0
    for _ in range(2000):
        table = (
            rng.normal(size=(3, 40)) + seed_effect * rng.normal(size=(3, 1)) + prompt_effect * rng.normal(size=(1, 40))
        )
        found = two_way_mean(table.tolist())
        assert found is not None
        misses = not found.estimate.ci_low <= 0 <= found.estimate.ci_high
        assert found.p_value is not None and misses == (found.p_value < 0.05)
        missed += misses
    assert missed <= 0.062 * 2000


def test_a_share_keeps_its_interval_within_its_bounds() -> None:
    """One seed, 9 of 10: the variance is 0.1/10, so p(1 − p)/variance = 9 rows; t_0.975(9) = 2.262157.

    Wilson's centre (0.9 + t²/18)/(1 + t²/9), half-width t·√(0.09/9 + t²/324)/(1 + t²/9).
    """
    found = two_way_mean([[1.0] * 9 + [0.0]], share=True)
    assert found is not None and found.p_value is None
    t = 2.262157
    centre, half = (0.9 + t * t / 18) / (1 + t * t / 9), t * math.sqrt(0.01 + t * t / 324) / (1 + t * t / 9)
    assert found.estimate.ci_low == pytest.approx(centre - half, abs=1e-5)
    assert found.estimate.ci_high == pytest.approx(centre + half, abs=1e-5) and found.estimate.ci_high < 1
    plain = two_way_mean([[1.0] * 9 + [0.0]])
    assert plain is not None and plain.estimate.ci_high > 1
