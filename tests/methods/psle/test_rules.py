"""The rules of a round against numbers worked by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from frugalign.methods.psle.rules import (
    Use,
    is_gain,
    pair_weights,
    reward_scale,
    round_weights,
    threshold,
    use_of,
)


def numbers(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


# -- the bar --------------------------------------------------------------------------------------------------------------


def test_the_threshold_of_each_round_worked_numbers() -> None:
    """τ_0 = 0.2, α = 0.9: 0.2, 0.18, 0.162, 0.1458. A decay of 1 keeps it, one of 0 leaves round 0 alone with a bar."""
    assert [threshold(0.2, 0.9, i) for i in range(4)] == pytest.approx([0.2, 0.18, 0.162, 0.1458])
    assert [threshold(0.2, 1.0, i) for i in range(3)] == [0.2, 0.2, 0.2]
    assert [threshold(0.2, 0.0, i) for i in range(3)] == [0.2, 0.0, 0.0]


def test_the_scale_is_pooled_over_both_kinds_worked_number() -> None:
    """0, 2 and 4, 2: the mean is 2, Σ(r − 2)² = 4 + 0 + 4 + 0 = 8, and 8/4 = 2.

    Dividing by n − 1 would give √(8/3), each kind by itself 1.
    """
    assert reward_scale(numbers(0, 2), numbers(4, 2)) == pytest.approx(math.sqrt(2))


def test_the_scale_goes_with_the_rewards_and_not_with_their_origin() -> None:
    """3·r + 7 has three times the spread: τ·σ_0 then splits the same couples as before."""
    plain, guided = numbers(0, 2, 1.5), numbers(4, 2, -1)
    assert reward_scale(3 * plain + 7, 3 * guided + 7) == pytest.approx(3 * reward_scale(plain, guided))


@pytest.mark.parametrize("value", [0.0, 2.5, 0.1])
def test_rewards_that_are_all_equal_have_the_scale_one(value: float) -> None:
    """So that nothing is divided by 0, nor by the 1e-17 that rounding makes of six times 0.1."""
    assert reward_scale(numbers(*[value] * 3), numbers(*[value] * 3)) == 1.0
    assert reward_scale(numbers(value), numbers()) == 1.0


def test_a_gain_is_strictly_above_the_bar() -> None:
    """τ = ¼ and σ_0 = 2 make the bar ½: gains of ½ + ε, ½, −1, 0 and 3; the one at the bar is none."""
    plain = numbers(1, 1, 1, 1, 1)
    guided = numbers(1.5 + 1e-9, 1.5, 0, 1, 4)
    assert is_gain(plain, guided, 0.25, 2.0).tolist() == [True, False, False, False, True]
    # Without a bar every improvement is a gain, and a tie is none.
    assert is_gain(plain, guided, 0.0, 2.0).tolist() == [True, True, False, False, True]


def test_a_missing_reward_is_no_gain() -> None:
    nan = float("nan")
    assert is_gain(numbers(nan, 0, nan), numbers(9, nan, nan), 0.2, 1.0).tolist() == [False, False, False]


# -- weights over the round -----------------------------------------------------------------------------------------------


def test_round_weights_worked_number() -> None:
    """σ_0 = 2 and T_w = 1: rewards 0, 2·ln 2, 2·ln 5 are z = 0, ln 2, ln 5 apart, so exp(z) goes as 1 : 2 : 5.

    The mean of these is 8/3, and the weights are 3/8, 6/8, 15/8, whose mean is 1.
    """
    found = round_weights(numbers(0, 2 * math.log(2), 2 * math.log(5)), 2.0)
    assert found.tolist() == pytest.approx([0.375, 0.75, 1.875])
    assert float(found.mean()) == pytest.approx(1.0)


def test_the_temperature_of_the_weights_worked_number() -> None:
    """T_w = 2 takes the square root of 1 : 4 : 16, which is 1 : 2 : 4 with the mean 7/3."""
    found = round_weights(numbers(0, math.log(4), math.log(16)), 1.0, temperature=2.0)
    assert found.tolist() == pytest.approx([3 / 7, 6 / 7, 12 / 7])


def test_only_differences_of_rewards_count() -> None:
    """Another origin of the rewards divides out in the mean of the weights; another unit does where σ_0 has it too."""
    rewards = numbers(0.3, -1.0, 2.0, 0.9)
    found = round_weights(rewards, 1.3)
    torch.testing.assert_close(round_weights(rewards + 40, 1.3), found)
    torch.testing.assert_close(round_weights(5 * rewards, 6.5), found)
    assert float(found.max() - found.min()) > 1


def test_the_mean_of_the_weights_is_one_before_the_cap() -> None:
    rewards = torch.randn(200, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert float(round_weights(rewards, 1.0, cap=1e9).mean()) == pytest.approx(1.0)


def test_the_cap_worked_number() -> None:
    """Nine responses at 1 and one at 91: the mean is 10, so they weigh 0.1 and 9.1; the cap takes 5 of the latter and gives nobody the rest."""
    rewards = numbers(*[0.0] * 9, math.log(91))
    assert round_weights(rewards, 1.0).tolist() == pytest.approx([0.1] * 9 + [5.0])
    assert round_weights(rewards, 1.0, cap=9.5).tolist() == pytest.approx([0.1] * 9 + [9.1])


@pytest.mark.parametrize("far", [1e3, 1e6, 1e300])
def test_rewards_however_far_away_do_not_overflow(far: float) -> None:
    """exp(10³) is infinite in float64: the far one takes all of the weight, the mean of which stays 1."""
    assert round_weights(numbers(0, far), 1.0).tolist() == [0.0, 2.0]
    assert round_weights(numbers(0, -far), 1.0).tolist() == [2.0, 0.0]
    assert round_weights(numbers(far, far), 1.0).tolist() == [1.0, 1.0]


def test_a_round_without_demonstrations_has_no_weights() -> None:
    assert round_weights(numbers(), 1.0).shape == (0,)


def test_round_weights_keep_their_shape() -> None:
    rewards = torch.arange(6, dtype=torch.float64).reshape(3, 2)
    torch.testing.assert_close(round_weights(rewards, 1.0).flatten(), round_weights(rewards.flatten(), 1.0))
    assert round_weights(rewards, 1.0).shape == (3, 2)


# -- weights inside the couple --------------------------------------------------------------------------------------------


def test_pair_weights_worked_number() -> None:
    """σ_0 = 2, T_w = ½, so a reward of ln 3 more is ln 3 more in the softmax: ¼ and ¾. Equal ones share."""
    plain, guided = pair_weights(numbers(0, math.log(3), 5), numbers(math.log(3), 0, 5), scale=2.0, temperature=0.5)
    assert plain.tolist() == pytest.approx([0.25, 0.75, 0.5])
    assert guided.tolist() == pytest.approx([0.75, 0.25, 0.5])


def test_pair_weights_add_up_to_one() -> None:
    generator = torch.Generator().manual_seed(0)
    rewards = 1e3 * torch.randn(2, 50, dtype=torch.float64, generator=generator)
    plain, guided = pair_weights(rewards[0], rewards[1], 0.7, 0.3)
    torch.testing.assert_close(plain + guided, torch.ones(50, dtype=torch.float64))
    assert bool((plain >= 0).all() and (guided >= 0).all())


def test_what_the_weights_of_the_round_tell_apart_and_those_of_the_pair_do_not() -> None:
    """A couple of two good answers and one of two bad ones, 4σ apart: alike by the pair; e⁴ to 1 by the round."""
    plain, guided = numbers(4, 0), numbers(4, 0)
    assert torch.cat(pair_weights(plain, guided, 1.0)).tolist() == [0.5] * 4
    good, bad = round_weights(torch.stack([plain, guided], 1), 1.0)
    assert (good / bad).tolist() == pytest.approx([math.exp(4)] * 2)


# -- what is made of what was generated -----------------------------------------------------------------------------------


def test_use_worked_number() -> None:
    """Weights 1, 1, 0, 2 of 3, 5, 7, 1 tokens: 9 of 16 tokens; (Σw)²/(n·Σw²) = 4²/(4·6) = 2/3."""
    found = use_of(numbers(1, 1, 0, 2), numbers(3, 5, 7, 1))
    assert found.tokens == pytest.approx(9 / 16) and found.responses == pytest.approx(2 / 3)


def test_use_of_equal_weights_is_the_share_that_has_one() -> None:
    """RAFT's best of four, at any weight: a quarter of the responses. All alike: all of them."""
    for weight in (1.0, 3.0):
        assert use_of(weight * numbers(0, 1, 0, 0), numbers(2, 2, 2, 2)) == Use(0.25, 0.25)
        assert use_of(weight * numbers(1, 1, 1, 1), numbers(5, 2, 9, 1)) == Use(1.0, 1.0)


def test_a_round_that_learns_from_nothing_uses_nothing() -> None:
    assert use_of(numbers(0, 0), numbers(3, 4)) == Use(0.0, 0.0)
    assert use_of(numbers(), numbers()) == Use(0.0, 0.0)
