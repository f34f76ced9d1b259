"""PSLE's loss against numbers worked by hand, the signs of its gradients, and finite differences."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from frugalign.methods.psle.loss import couple_loss, imitation_loss, ranking_loss


def numbers(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def leaf(*values: float) -> Tensor:
    return numbers(*values).requires_grad_()


def gradients(loss: Tensor, *inputs: Tensor) -> list[list[float]]:
    return [each.tolist() for each in torch.autograd.grad(loss.sum(), inputs)]


def test_ranking_worked_numbers() -> None:
    """t = 0.1. ℓ_p = ℓ: −log ½. ℓ_p − ℓ = 0.1·ln 3: −log σ(ln 3) = −log ¾ = log 4/3. Turned round: −log ¼."""
    step = 0.1 * math.log(3)
    found = ranking_loss(numbers(-2, -2 + step, -2 - step), numbers(-2, -2, -2), 0.1)
    assert found.tolist() == pytest.approx([math.log(2), math.log(4 / 3), math.log(4)])


def test_the_temperature_of_the_ranking_worked_number() -> None:
    """t = 1: a gap of ln 3 is what 0.1·ln 3 is at 0.1."""
    found = ranking_loss(numbers(math.log(3)), numbers(0), temperature=1.0)
    assert found.tolist() == pytest.approx([math.log(4 / 3)])


def test_ranking_pushes_the_guided_up_and_the_plain_down() -> None:
    """∂/∂ℓ_p = −(1 − σ((ℓ_p − ℓ)/t))/t: −5 where they are equal, −2.5 in the right order at σ = ¾, −7.5 in the wrong one; ∂/∂ℓ is its opposite."""
    step = 0.1 * math.log(3)
    guided, plain = leaf(-2, -2 + step, -2 - step), leaf(-2, -2, -2)
    to_guided, to_plain = gradients(ranking_loss(guided, plain, 0.1), guided, plain)
    assert to_guided == pytest.approx([-5.0, -2.5, -7.5])
    assert to_plain == pytest.approx([5.0, 2.5, 7.5])


def test_a_couple_that_is_far_apart_neither_overflows_nor_learns() -> None:
    guided, plain = leaf(0, -1e6), leaf(-1e6, 0)
    loss = ranking_loss(guided, plain, 0.1)
    assert loss.tolist() == pytest.approx([0.0, 1e7])
    assert gradients(loss, guided)[0] == pytest.approx([0.0, -10.0])


def test_imitation_worked_number() -> None:
    """−(2·(−1) + 0.5·(−3)) = 3.5; at weights 0 and 1 the plain response's −ℓ alone."""
    found = imitation_loss(numbers(-1, -1), numbers(-3, -3), numbers(2, 0), numbers(0.5, 1))
    assert found.tolist() == [3.5, 3.0]


def test_imitation_pushes_each_response_up_by_its_weight() -> None:
    """∂/∂ℓ_m = −w_m, whatever ℓ_m is; a response of weight 0 gets no gradient."""
    guided, plain = leaf(-1, -5), leaf(-3, -0.1)
    loss = imitation_loss(guided, plain, numbers(2, 0), numbers(0, 0.5))
    assert gradients(loss, guided, plain) == [[-2.0, 0.0], [0.0, -0.5]]


def test_each_couple_is_in_one_branch_worked_number() -> None:
    """Ranked ones cost 1 and 2, imitated ones η·30 = 15 and η·40 = 20 at η = ½: L = (1 + 15 + 2 + 20)/4 = 9.5."""
    found = couple_loss(numbers(1, 3, 2, 4), numbers(10, 30, 20, 40), torch.tensor([True, False, True, False]), 0.5)
    assert found.tolist() == [1.0, 15.0, 2.0, 20.0]
    assert float(found.mean()) == 9.5


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0, 3.0])
def test_eta_scales_the_demonstrations_alone(eta: float) -> None:
    ranking, imitation = leaf(1, 1), leaf(1, 1)
    loss = couple_loss(ranking, imitation, torch.tensor([True, False]), eta)
    assert gradients(loss, ranking, imitation) == [[1.0, 0.0], [0.0, eta]]


def test_the_loss_of_a_batch_is_the_formula_written_out() -> None:
    """`(1/N)·[Σ_rank −log σ((ℓ_p − ℓ)/t) + η·Σ_wsft −Σ_m w_m·ℓ_m]` over couples of both kinds, one at a time in plain Python."""
    generator = torch.Generator().manual_seed(0)
    guided, plain = -torch.rand(2, 9, dtype=torch.float64, generator=generator)
    guided_weight, plain_weight = 5 * torch.rand(2, 9, dtype=torch.float64, generator=generator)
    ranked = [True, False, False, True, True, False, False, False, True]
    expected = 0.0
    for couple, is_ranked in enumerate(ranked):
        high, low = float(guided[couple]), float(plain[couple])
        if is_ranked:
            expected += math.log(1 + math.exp(-(high - low) / 0.2))
        else:
            expected -= 0.7 * (float(guided_weight[couple]) * high + float(plain_weight[couple]) * low)
    found = couple_loss(
        ranking_loss(guided, plain, 0.2),
        imitation_loss(guided, plain, guided_weight, plain_weight),
        torch.tensor(ranked),
        0.7,
    ).mean()
    assert float(found) == pytest.approx(expected / 9)


@pytest.mark.parametrize(
    "loss",
    [
        lambda guided, plain: ranking_loss(guided, plain, 0.3),
        lambda guided, plain: imitation_loss(guided, plain, numbers(2, 0, 1), numbers(0.5, 1, 0)),
        lambda guided, plain: couple_loss(
            ranking_loss(guided, plain, 0.3),
            imitation_loss(guided, plain, numbers(2, 0, 1), numbers(0.5, 1, 0)),
            torch.tensor([True, False, True]),
            0.7,
        ),
    ],
    ids=["ranking", "imitation", "couples"],
)
def test_gradients_are_those_of_finite_differences(loss: Callable[[Tensor, Tensor], Tensor]) -> None:
    assert torch.autograd.gradcheck(loss, (leaf(-1.0, -2.0, -0.3), leaf(-1.1, -1.5, -0.7)))
