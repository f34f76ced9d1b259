"""The probes' losses by hand, the fit against a known answer, folding, and calibration."""

import math

import pytest
import torch
from torch import Tensor

from frugalign.base.errors import FrugalignError
from frugalign.rewards.representation.fit import (
    Examples,
    FitOptions,
    Standardiser,
    calibrate,
    fit,
    label_loss,
    pair_loss,
    raw_rewards,
)
from frugalign.rewards.representation.network import RepresentationConfig, RepresentationModel


def test_the_losses_by_hand() -> None:
    """Pairs (2, 0) and (0, 1), margin 1: −log σ(1) and −log σ(−2). Rewards 1 and −1 with labels 1 and 1: −log σ(1), −log σ(−1)."""
    found = pair_loss(torch.tensor([2.0, 0.0]), torch.tensor([0.0, 1.0]))
    assert float(found) == pytest.approx((math.log1p(math.exp(-1)) + math.log1p(math.exp(2))) / 2, abs=1e-6)
    found = label_loss(torch.tensor([1.0, -1.0]), torch.tensor([1.0, 1.0]))
    assert float(found) == pytest.approx((math.log1p(math.exp(-1)) + math.log1p(math.exp(1))) / 2, abs=1e-6)


def test_the_reward_by_hand() -> None:
    """r = 1·2 − 1·3 + 0.5 = −0.5; calibrated with μ = −1 and t̂ = ½: 1."""
    model = RepresentationModel(RepresentationConfig(width=1, layers=[1, 2]))
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[1.0], [-1.0]]))
        model.bias.fill_(0.5)
    states = torch.tensor([[[2.0], [3.0]]])
    assert float(model(states)) == pytest.approx(-0.5, abs=1e-6)
    model.config.mu, model.config.scale = -1.0, 0.5
    assert float(model.calibrated(states)) == pytest.approx(1.0, abs=1e-6)


def world(n: int = 400, layers: int = 3, width: int = 12) -> tuple[Tensor, Tensor]:
    """States whose second layer holds the answer in one direction, beside a constant feature and one of a thousandfold scale."""
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(n, layers, width, generator=generator)
    labels = (torch.rand(n, generator=generator) < 0.5).float()
    states[:, 1, 4] += 3 * labels
    states[:, :, 0] = 7.0
    states[:, :, 1] *= 1000
    return states, labels


def test_a_fit_finds_the_direction_and_every_probe_learns() -> None:
    """On labels and on pairs of them; a gradient reaches each probe and the bias."""
    states, labels = world()
    rows = torch.arange(len(states))

    def read(index: Tensor) -> Tensor:
        return states[index]

    options = FitOptions(weight_decay=0.003)
    train, held_out = Examples(rows[:200], labels=labels[:200]), Examples(rows[200:300], labels=labels[200:300])
    found = fit(read, train, held_out, [1, 2, 3], 12, options)
    right = ((raw_rewards(found.model, read, rows[300:]) > 0).float() == labels[300:]).float().mean()
    assert float(right) > 0.85 and found.history[-1][0] < found.history[0][0]
    for parameter in (found.model.weight, found.model.bias):
        assert bool((parameter.abs() > 0).any(-1).all())
    good, bad = rows[:300][labels[:300] == 1], rows[:300][labels[:300] == 0]
    n = min(len(good), len(bad))
    pairs = Examples(good[: n - 30], bad[: n - 30])
    found = fit(read, pairs, Examples(good[n - 30 : n], bad[n - 30 : n]), [1, 2, 3], 12, options)
    rewards = raw_rewards(found.model, read, rows)
    late = rewards[300:]
    assert float(late[labels[300:] == 1].mean() - late[labels[300:] == 0].mean()) > 1
    strongest = found.model.weight[1] * states.std(0)[1]
    assert int(strongest.abs().argmax()) == 4


@pytest.mark.parametrize(("copies", "columns"), [(4, 1), (1, 4), (3, 2)])
def test_one_penalty_acts_alike_on_any_number_of_features(copies: int, columns: int) -> None:
    """The same feature several times, as layers or as columns: each gets an equal share of the weight, so the lowest
    penalised loss stays."""
    generator = torch.Generator().manual_seed(2)
    one = torch.randn(60, 1, 1, generator=generator)
    labels = (one[:, 0, 0] + 0.5 * torch.randn(60, generator=generator) > 0).float()
    whole, lowest = Examples(torch.arange(60), labels=labels), []
    for states in (one, one.repeat(1, copies, columns)):
        layers, options = list(range(states.shape[1])), FitOptions(weight_decay=0.3, patience=200)
        lowest.append(fit(states.__getitem__, whole, whole, layers, states.shape[2], options).history[-1][0])
    assert lowest[0] == pytest.approx(lowest[1], abs=1e-5) and lowest[0] < 0.68


def test_folding_leaves_the_reward_as_it_was() -> None:
    states, _ = world()
    states[:, :, 1] /= 1000  # a thousandfold scale leaves float32 few digits for the difference
    standard = Standardiser.of(lambda index: states[index], torch.arange(400), batch_size=37)
    torch.testing.assert_close(standard.mean, states.mean(0), atol=1e-5, rtol=1e-5)
    model = RepresentationModel(RepresentationConfig(width=12, layers=[1, 2, 3]))
    torch.manual_seed(0)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    before = model(standard(states))
    standard.fold(model)
    torch.testing.assert_close(model(states), before, atol=1e-3, rtol=1e-4)


def test_the_fit_stops_where_the_validation_loss_is_lowest() -> None:
    """Pure noise: the first iterations are the best ones, and the fit ends `patience` iterations later."""
    generator = torch.Generator().manual_seed(1)
    states = torch.randn(120, 1, 40, generator=generator)
    labels = (torch.rand(120, generator=generator) < 0.5).float()
    rows = torch.arange(120)
    found = fit(
        lambda index: states[index], Examples(rows[:60], labels=labels[:60]), Examples(rows[60:], labels=labels[60:]), [1], 40,
        FitOptions(weight_decay=0.00002, patience=5),
    )  # fmt: skip
    assert len(found.history) == found.best_iteration + 6 < 100
    assert found.validation_loss == min(loss for _, loss in found.history)


def test_calibration_finds_the_temperature() -> None:
    """Gaps of ±2 that are right three times of four: σ(2/t̂) = ¾, so t̂ = 2/log 3; μ is the mean of all rewards."""
    model = RepresentationModel(RepresentationConfig(width=1, layers=[1]))
    chosen, rejected = torch.tensor([3.0, 3.0, 3.0, 1.0]), torch.tensor([1.0, 1.0, 1.0, 3.0])
    calibrate(model, chosen, rejected)
    assert model.config.scale == pytest.approx(2 / math.log(3), rel=3e-3) and model.config.mu == 2.0
    with pytest.raises(FrugalignError, match="same reward"):
        calibrate(model, chosen, chosen)


def test_nothing_to_learn_from_and_states_that_are_not_finite() -> None:
    states = torch.full((4, 1, 2), float("nan"))
    some = Examples(torch.arange(2), labels=torch.tensor([0.0, 1.0]))
    with pytest.raises(FrugalignError, match="not finite"):
        fit(lambda index: states[index], some, some, [1], 2, FitOptions())
    with pytest.raises(FrugalignError, match="at least one training and one validation example"):
        fit(lambda index: states[index], some, Examples(torch.arange(0), labels=torch.zeros(0)), [1], 2, FitOptions())
