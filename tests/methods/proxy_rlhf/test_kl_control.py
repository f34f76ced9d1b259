"""The price of the KL, and the trust region around a rollout: worked numbers, and bases that answer differently."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from frugalign.base.errors import FrugalignError
from frugalign.methods.proxy_rlhf.kl_control import (
    BETA,
    Distances,
    KLController,
    Limits,
    RolloutUpdate,
    TrustRegion,
)
from frugalign.methods.proxy_rlhf.loss import Minibatch
from frugalign.proxy.candidates import Limits as CandidateLimits
from frugalign.proxy.candidates import candidates
from frugalign.proxy.positions import Positions


def after(*kls: float, target: float = 10.0, beta: float = 0.3) -> list[float]:
    """β after rollouts with these mean KLs."""
    controller, found = KLController(beta, target), []
    for kl in kls:
        controller.observe(kl)
        assert controller.beta is not None
        found.append(controller.beta)
    return found


# -- the price --------------------------------------------------------------------------------------------------------


def test_it_rests_at_its_target_and_moves_the_right_way() -> None:
    assert after(10.0, 10.0) == pytest.approx([0.3, 0.3])
    assert after(15.0, 15.0)[1] > after(15.0)[0] > 0.3
    assert 0 < after(5.0, 5.0, 5.0)[2] < after(5.0, 5.0)[1] < 0.3
    assert after(0.0, 0.0, 0.0)[-1] > 0


def test_without_a_target_the_price_is_constant() -> None:
    controller = KLController(0.3, None)
    controller.observe(100.0)
    assert controller.price(1.0) == 0.3 and controller.limits(100.0, 1.0).from_base is None


def test_it_never_falls_while_the_kl_is_over_the_target() -> None:
    """A jump of the KL and its way back: from 1 to 42 and down to 12, all but the first over 10."""
    found = after(1.0, 42.0, 36.0, 30.0, 24.0, 18.0, 12.0)
    assert found[1:] == sorted(found[1:])


def test_worked_prices() -> None:
    """log(kl/target) over the target and half of it below, at most a factor e^0.7 up and e^0.3 down."""
    assert after(12.0)[0] == pytest.approx(0.3 * 1.2)
    assert after(8.0, 8.0)[1] == pytest.approx(0.3 * 0.8**0.5)
    assert after(100.0)[0] == pytest.approx(0.3 * math.exp(0.7))
    assert after(0.0, 0.0)[1] == pytest.approx(0.3 * math.exp(-0.3))


def test_it_waits_while_the_kl_comes_closer() -> None:
    """Below the target: no fall at a new high. Over it: no rise while the KL falls by 2 % of the target."""
    assert after(0.0, 2.0, 4.0, 4.3) == [0.3] * 4
    assert after(4.0, 4.1)[1] < 0.3, "a high that is hardly new"
    climbed, lost, again = after(4.0, 3.9, 4.5)
    assert climbed == 0.3 and lost < climbed and again == lost
    over, coming, slowly = after(20.0, 16.0, 15.9)
    assert coming == over and slowly > coming


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_the_first_price_has_the_scale_of_the_reward(scale: float) -> None:
    """spread·√(2·KL) has the slope spread/√(2·target): 4/√(2·8) = 1."""
    assert KLController(None, 8.0).price(4.0 * scale) == pytest.approx(scale)


def test_a_price_that_nothing_sets_is_the_default_and_a_given_one_stays() -> None:
    assert KLController(None, None).price(4.0) == BETA
    assert KLController(0.3, 8.0).price(4.0) == 0.3


def test_equal_rewards_set_no_price() -> None:
    """A rollout of equal rewards says nothing of their scale. The first that differ set it."""
    controller = KLController(None, 8.0)
    assert controller.price(0.0) == BETA
    controller.observe(1.0)
    assert controller.price(400.0) == pytest.approx(100.0)


def test_a_price_that_is_no_obstacle_falls_no_further() -> None:
    """0.15 times the mean spread over the target: 0.15·(1 + 3)/2/10 = 0.03. A given price that is lower stays."""
    controller, low = KLController(None, 10.0), KLController(0.01, 10.0)
    for spread in (1.0, 3.0):
        assert controller.price(spread) > 0.03 and low.price(spread) == 0.01
    for _ in range(20):
        controller.observe(0.0)
        low.observe(0.0)
    assert controller.beta == pytest.approx(0.03) and low.beta == 0.01


@pytest.mark.parametrize("idle", [0, 6, 12, 20])
def test_a_proxy_that_learns_late_does_not_run_away(idle: int) -> None:
    """SmolLM2 moves by under a nat for a dozen rollouts, and by one in every rollout after that."""
    controller, kl, seen = KLController(None, 6.0), 0.0, []
    for rollout in range(idle + 24):
        beta = controller.price(0.25)
        best = (0.3 * 0.25 / beta) ** 2 / 2 if rollout >= idle else 0.1
        limit = controller.limits(kl, 1.0).from_base
        assert limit is not None
        kl = min(kl + 0.3 * (best - kl), kl + 1.0, limit)
        controller.observe(kl)
        seen.append(kl)
    assert max(seen) <= 1.2 * 6 + 1e-9
    assert all(4.8 < kl < 7.2 for kl in seen[-5:])
    assert sum(kl > 1.1 * 6 for kl in seen) < 10, "rollouts at the trust region's edge"


@pytest.mark.parametrize("scale", [1e-2, 1.0, 1e2])
@pytest.mark.parametrize("hardness", [0.3, 1.0, 3.0])
@pytest.mark.parametrize("speed", [0.15, 0.5])
def test_it_holds_the_target_on_bases_that_answer_differently(scale: float, hardness: float, speed: float) -> None:
    """A base whose reward rises like `hardness·scale·√(2·KL)`: its KL moves a share `speed` towards the best at β in every
    rollout, and no further than the trust region lets it. It stays under twice the target and ends near it."""
    controller, kl, seen = KLController(None, 10.0), 0.0, []
    controller.price(scale)
    for _ in range(30):
        controller.observe(kl)
        assert controller.beta is not None
        best = (hardness * scale / controller.beta) ** 2 / 2
        limit = controller.limits(kl, 1.0).from_base
        assert limit is not None
        kl = min(kl + speed * (best - kl), limit)
        seen.append(kl)
    assert max(seen) < 20
    assert all(8 < kl < 12 for kl in seen[-5:])


# -- the trust region -------------------------------------------------------------------------------------------------


class Slope(torch.nn.Module):
    """A proxy of one parameter: the score of a candidate is that times its number."""

    def __init__(self, value: float = 0.0) -> None:
        super().__init__()
        self.slope = torch.nn.Parameter(torch.tensor([value]))

    def forward(self, hidden: torch.Tensor, ids: torch.Tensor, **_: Any) -> torch.Tensor:
        return self.slope * ids


def minibatch(old_slope: float = 0.0, n: int = 6) -> Minibatch:
    """`n` positions of three sequences with five candidates."""
    logits = torch.randn(n, 5, generator=torch.Generator().manual_seed(0))
    found = candidates(logits, 1.0, CandidateLimits(0.0, 5))
    positions = Positions(
        sequence=torch.arange(n) // 2,
        position=torch.arange(n) % 2,
        hidden=torch.zeros(n, 2),
        ids=found.ids,
        log_p=found.log_p,
        mask=found.mask,
        choice=torch.zeros(n, dtype=torch.long),
        rejected=None,
        coin_flipped=None,
        lookahead=None,
    )
    old = torch.log_softmax(found.log_p + torch.nn.functional.logsigmoid(old_slope * found.ids), -1)
    return Minibatch(positions, None, None, torch.zeros(n), None, torch.zeros(n), old, kl_weight=1.0, n_sequences=3)


def region(*batches: Minibatch) -> TrustRegion:
    return TrustRegion(batches or [minibatch()], "marginal", lambda sums: sums)


def by_hand(batch: Minibatch, slope: float) -> tuple[float, float]:
    """KL(π_new ‖ π_old) and KL(π_new ‖ p), per sequence."""
    positions = batch.positions
    new = torch.log_softmax(positions.log_p + torch.nn.functional.logsigmoid(slope * positions.ids), -1)
    moved, far = ((new.exp() * (new - other)).sum() / 3 for other in (batch.old_log_pi, positions.log_p))
    return float(moved), float(far)


def test_distances_are_exact_and_per_sequence() -> None:
    batch = minibatch(old_slope=0.4)
    found = region(batch).distances(Slope(-1.0))
    assert (found.moved, found.from_base) == pytest.approx(by_hand(batch, -1.0), rel=1e-5)
    assert region(batch).distances(Slope(0.4)).moved == pytest.approx(0.0, abs=1e-6)
    both = region(batch, batch).distances(Slope(-1.0))
    assert both.moved == pytest.approx(found.moved), "a mean over sequences, not a sum"


def test_a_step_within_its_limits_is_kept() -> None:
    proxy = Slope(-0.5)
    share, _ = region().shorten(proxy, [torch.tensor([0.0])], Limits(100.0, 100.0))
    assert share == 1.0 and proxy.slope.item() == -0.5


@pytest.mark.parametrize("limits", [Limits(0.05), Limits(100.0, 0.05), Limits(0.05, 100.0)])
def test_a_step_that_is_too_long_is_shortened(limits: Limits) -> None:
    """It ends inside, and not far inside: a good part of what is allowed is used."""
    proxy, batch = Slope(-8.0), minibatch()
    share, found = region(batch).shorten(proxy, [torch.tensor([0.0])], limits)
    assert 0 < share < 1 and proxy.slope.item() == pytest.approx(-8.0 * share)
    assert 0.2 * 0.05 < found.moved <= 0.05
    assert found.moved == pytest.approx(by_hand(batch, proxy.slope.item())[0], rel=1e-4)


def test_a_step_that_cannot_be_inside_is_undone() -> None:
    """It began outside and went further out."""
    batch = minibatch(old_slope=-3.0)
    proxy = Slope(-4.0)
    share, found = region(batch).shorten(proxy, [torch.tensor([-3.0])], Limits(100.0, 1e-4))
    assert share == 0.0 and proxy.slope.item() == -3.0 and found.moved == pytest.approx(0.0, abs=1e-6)


def test_a_step_back_towards_the_base_is_kept_however_far_out_it_is() -> None:
    """The limit is where the rollout was, if that is further than the target."""
    batch = minibatch(old_slope=-3.0)
    was = by_hand(batch, -3.0)[1]
    limits = KLController(0.3, was / 4).limits(was, 100.0)
    assert region(batch).shorten(Slope(-2.0), [torch.tensor([-3.0])], limits)[0] == 1.0
    assert region(batch).shorten(Slope(-6.0), [torch.tensor([-3.0])], limits)[0] < 1.0


def test_the_distances_at_the_start_are_those_of_the_proxy_that_sampled() -> None:
    batch = minibatch(old_slope=0.4)
    found = region(batch).distances()
    assert (found.moved, found.from_base) == pytest.approx(by_hand(batch, 0.4), rel=1e-5)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_step_to_no_number_ends_the_training(value: float) -> None:
    with pytest.raises(FrugalignError, match="diverged"):
        region().shorten(Slope(value), [torch.tensor([0.0])], Limits(1.0))


def test_a_step_so_long_that_nothing_can_be_measured_is_shortened() -> None:
    """At 1e38 a score overflows, and its divergence is not a number."""
    proxy = Slope(-3e38)
    share, found = region().shorten(proxy, [torch.tensor([0.0])], Limits(1.0))
    assert share < 1.0 and found.moved <= 1.0 and abs(proxy.slope.item()) < 3e38


def test_excess_is_the_worse_of_the_two() -> None:
    assert Limits(2.0, 10.0).excess(Distances(1.0, 15.0)) == 1.5
    assert Limits(2.0, 10.0).excess(Distances(6.0, 15.0)) == 3.0
    assert Limits(2.0).excess(Distances(1.0, 1e6)) == 0.5


# -- how many passes a rollout carries ---------------------------------------------------------------------------------


def passes(slopes: list[float], limits: Limits, n_minibatches: int = 2) -> tuple[RolloutUpdate, int]:
    """An update whose optimiser steps set the proxy to these slopes one after the other, and how many of them it took."""
    batches = [minibatch() for _ in range(n_minibatches)]
    update, proxy = RolloutUpdate(region(*batches), limits), Slope()
    for step, slope in enumerate(slopes):
        found = update.minibatch(step)
        if found is None:
            return update, step
        assert found.positions is batches[step % n_minibatches].positions
        update.begin(proxy)
        proxy.slope.data.fill_(slope)
        update.end(proxy)
    return update, len(slopes)


def test_passes_end_after_the_one_that_moved_the_policy_far_enough() -> None:
    """Whole passes: a first step that is far enough does not cut the pass short."""
    enough = by_hand(minibatch(), -1.0)[0]
    limits = Limits(2 * enough)
    assert passes([-0.1, -0.2, -1.01, -1.02, -1.03, -1.04], limits)[1] == 4
    assert passes([-1.01, -0.1, -1.01, -0.2, -0.3, -0.4], limits)[1] == 6
    assert passes([-1.01, -0.1, -1.01, -1.02], limits, n_minibatches=1)[1] == 1


def test_steps_that_lead_out_are_made_again_at_twice_the_price() -> None:
    """At the limit from the base, steps outwards are hardly kept. The price of the KL doubles after each such pass."""
    limits = Limits(1e6, by_hand(minibatch(), -1.0)[1])
    update, taken = passes([-1.0, -1.0, -99.0, -99.0, -99.0, -99.0], limits)
    assert taken == 6 and update.price == 2.0
    assert [found.kl_weight for step in (6, 7) if (found := update.minibatch(step)) is not None] == [4.0, 4.0]
    assert update.statistics()["kl_after"] <= limits.from_base  # type: ignore[operator]
    assert passes([-0.1] * 6, limits)[0].price == 1.0


def test_what_an_update_did() -> None:
    update, _ = passes([-0.5, -0.6], Limits(100.0))
    moved, far = by_hand(minibatch(), -0.6)
    found = update.statistics()
    assert (found["passes"], found["step_kept"]) == (1.0, 1.0)
    assert (found["moved"], found["kl_after"]) == pytest.approx((moved, far), rel=1e-4)
    assert passes([-0.5, -0.6, -0.7], Limits(1e9))[0].statistics()["passes"] == 1.5


def test_a_skipped_step_moves_nothing() -> None:
    update, taken = passes([-1.0, -1.0], Limits(1e-3))
    proxy = Slope(5.0)
    assert taken == 2 and update.minibatch(2) is None and update.minibatch(3) is None
    update.end(proxy)
    assert proxy.slope.item() == 5.0
