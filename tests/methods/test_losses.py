"""Losses on preferences: worked numbers, their limits, and gradients against finite differences."""

import math

import pytest
import torch

from frugalign.methods.losses import confidence_loss, dpo_loss, imitation_loss


def test_dpo_worked_number() -> None:
    """β = 0.1, log-ratios 10·ln 3 apart: −log σ(ln 3) = log 4/3; at the reference itself log 2, with the gradient ∓β/2."""
    assert dpo_loss(torch.tensor([10 * math.log(3)]), 0.1).tolist() == pytest.approx([math.log(4 / 3)])
    chosen, rejected = torch.zeros(1, requires_grad=True), torch.zeros(1, requires_grad=True)
    loss = dpo_loss(chosen - rejected, 0.1)
    assert loss.tolist() == pytest.approx([math.log(2)])
    loss.backward()
    assert chosen.grad is not None and rejected.grad is not None
    assert (chosen.grad.item(), rejected.grad.item()) == pytest.approx((-0.05, 0.05))


def test_the_loss_by_hand() -> None:
    """β = ½, Δ = 2·log 3: −¾·log ¾ − ¼·log ¼. For γ < ½ the gradient prefers the rejected answer; at ½ and Δ = 0 there is none."""
    delta = torch.tensor([2 * math.log(3)])
    expected = -0.75 * math.log(0.75) - 0.25 * math.log(0.25)
    assert float(confidence_loss(delta, torch.tensor([0.75]), 0.5)) == pytest.approx(expected, abs=1e-6)
    for gamma, sign in ((1.0, -1), (0.5, 0), (0.2, 1)):
        delta = torch.zeros(1, requires_grad=True)
        confidence_loss(delta, torch.tensor([gamma]), 0.5).sum().backward()
        assert delta.grad is not None and float(delta.grad.sign()) == sign


def test_full_confidence_is_dpo_to_the_last_bit() -> None:
    delta = torch.linspace(-40, 40, 33)
    assert torch.equal(confidence_loss(delta, torch.ones(33), 0.3), dpo_loss(delta, 0.3))
    assert torch.equal(confidence_loss(delta, torch.zeros(33), 0.3), dpo_loss(-delta, 0.3))


def test_the_imitation_term_by_hand() -> None:
    """γ = 1: the chosen answer's −ℓ; ¾: half of it; ½: nothing; ¼: half of the other's."""
    chosen, rejected = torch.tensor([-1.0] * 4), torch.tensor([-3.0] * 4)
    assert imitation_loss(chosen, rejected, torch.tensor([1.0, 0.75, 0.5, 0.25])).tolist() == [1.0, 0.5, 0.0, 1.5]


def test_gradients_are_those_of_finite_differences() -> None:
    gamma = torch.tensor([1.0, 0.7, 0.2], dtype=torch.float64)
    delta = torch.tensor([-1.0, 0.5, 2.0], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda each: confidence_loss(each, gamma, 0.3), (delta,))
    assert torch.autograd.gradcheck(lambda each: imitation_loss(each, 2 * each, gamma), (delta,))
