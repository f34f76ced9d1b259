"""The training signal against numbers worked by hand, naive loops and finite differences."""

from __future__ import annotations

import math

import pytest
import torch

from frugalign.methods.proxy_rlhf import advantages as losses

NAN = float("nan")


def test_leave_one_out_worked_number() -> None:
    """Group 0 has rewards 1, 2, 6: 1 − (2+6)/2 = −3, 2 − 3.5 = −1.5, 6 − 1.5 = 4.5; group 1 has 0 and 4: −4 and 4."""
    advantage, usable = losses.leave_one_out(torch.tensor([1.0, 0.0, 2.0, 4.0, 6.0]), torch.tensor([0, 1, 0, 1, 0]))
    assert advantage.tolist() == [-3.0, -4.0, -1.5, 4.0, 4.5]
    assert usable.all()


def test_leave_one_out_leaves_skipped_rewards_and_groups_of_one_out() -> None:
    """1, NaN, 3: the NaN counts for nobody, so −2 and 2. A group of one has no other completion; nor has one of 5, NaN."""
    rewards = torch.tensor([1.0, NAN, 3.0, 7.0, 5.0, NAN])
    advantage, usable = losses.leave_one_out(rewards, torch.tensor([0, 0, 0, 1, 2, 2]))
    assert advantage.tolist() == [-2.0, 0.0, 2.0, 0.0, 0.0, 0.0]
    assert usable.tolist() == [True, False, True, False, False, False]


def test_leave_one_out_sums_to_zero_in_a_group_and_ignores_a_constant() -> None:
    """Σ_i (r_i − (Σ−r_i)/(n−1)) = 0, and adding a constant to a group's rewards changes no advantage."""
    rewards = torch.randn(12, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    groups = torch.arange(12) // 4
    advantage, _ = losses.leave_one_out(rewards, groups)
    torch.testing.assert_close(advantage.reshape(3, 4).sum(1), torch.zeros(3, dtype=torch.float64))
    moved, _ = losses.leave_one_out(rewards + 10.0 * groups, groups)
    torch.testing.assert_close(advantage, moved)
    assert float(advantage.abs().min()) > 0


def test_kl_to_go_worked_number() -> None:
    """KL 1, 2, 4 leaves 6, 4, 0 to come; what stands at padding (9) never counts."""
    kl = torch.tensor([[1.0, 2.0, 4.0], [1.0, 2.0, 9.0]])
    valid = torch.tensor([[True, True, True], [True, True, False]])
    assert losses.kl_to_go(kl, valid).tolist() == [[6.0, 4.0, 0.0], [2.0, 0.0, 0.0]]


def test_centring_is_per_position_over_the_sequences_that_reach_it() -> None:
    """Position 0: 6 − 2 and 2 − 6; position 1: 4 − 0 and 0 − 4; position 2: the first is alone, and pays all of its 3."""
    values = torch.tensor([[6.0, 4.0, 3.0], [2.0, 0.0, 100.0]])
    valid = torch.tensor([[True, True, True], [True, True, False]])
    assert losses.centre_by_position(values, valid).tolist() == [[4.0, 4.0, 3.0], [-4.0, -4.0, 0.0]]


def test_the_mean_is_over_the_others() -> None:
    values = torch.tensor([[6.0], [2.0], [1.0]])
    valid = torch.ones(3, 1, dtype=torch.bool)
    assert losses.centre_by_position(values, valid).tolist() == [[4.5], [-1.5], [-3.0]]


def test_centring_over_two_processes_is_centring_over_all_rows() -> None:
    values = torch.randn(6, 4, generator=torch.Generator().manual_seed(2))
    valid = torch.arange(4)[None] < torch.tensor([4, 3, 1, 4, 2, 2])[:, None]
    whole = losses.centre_by_position(values, valid)
    sums = [
        torch.stack([(values[half] * valid[half]).sum(0), valid[half].float().sum(0)])
        for half in (slice(0, 3), slice(3, 6))
    ]
    halves = [
        losses.centre_by_position(values[half], valid[half], lambda own: sums[0] + sums[1])
        for half in (slice(0, 3), slice(3, 6))
    ]
    torch.testing.assert_close(torch.cat(halves), whole)
    assert float((losses.centre_by_position(values[:3], valid[:3]) - whole[:3]).abs().max()) > 1e-3


def test_gae_worked_number() -> None:
    """β = ½, λ = ½, r = 4, KL = (1, 2), V = (1, 3): δ_1 = 4 − 3 = 1; δ_0 = V_1 − β·KL_1 − V_0 = 3 − 1 − 1 = 1.

    So A = (1 + ½·1, 1) and the targets are A + V = (2.5, 4). A row that ends after one token has A = 4 − 1 = 3.
    """
    kl = torch.tensor([[1.0, 2.0], [1.0, 2.0]])
    values = torch.tensor([[1.0, 3.0], [1.0, 3.0]])
    valid = torch.tensor([[True, True], [True, False]])
    advantage, returns = losses.gae(torch.tensor([4.0, 4.0]), kl, values, valid, beta=0.5, lam=0.5)
    assert advantage.tolist() == [[1.5, 1.0], [3.0, 0.0]]
    assert returns.tolist() == [[2.5, 4.0], [4.0, 0.0]]


def test_gae_with_lambda_one_is_return_minus_value_and_with_zero_the_one_step_error() -> None:
    """λ = 1: A_t = r − β Σ_{t'>t} KL_{t'} − V_t on rows of every length; λ = 0: A_t = δ_t."""
    generator = torch.Generator().manual_seed(0)
    kl, values = torch.rand(5, 6, generator=generator), torch.randn(5, 6, generator=generator)
    rewards, lengths, beta = torch.randn(5, generator=generator), [6, 1, 3, 5, 2], 0.3
    valid = torch.arange(6)[None] < torch.tensor(lengths)[:, None]
    full, _ = losses.gae(rewards, kl, values, valid, beta, lam=1.0)
    expected = torch.where(valid, rewards[:, None] - beta * losses.kl_to_go(kl, valid) - values, torch.zeros(()))
    torch.testing.assert_close(full, expected)
    one_step, _ = losses.gae(rewards, kl, values, valid, beta, lam=0.0)
    for row, length in enumerate(lengths):
        for t in range(length):
            ahead = rewards[row] if t + 1 == length else values[row, t + 1] - beta * kl[row, t + 1]
            assert float(one_step[row, t]) == pytest.approx(float(ahead - values[row, t]), abs=1e-6)


@pytest.mark.parametrize(
    ("ratio", "advantage", "surrogate", "clipped"),
    [
        (1.0, 2.0, 2.0, False),  # unchanged
        (1.5, 2.0, 2.4, True),  # risen enough: 1.2·2
        (0.5, 2.0, 1.0, False),  # fallen though it was good: the gradient stays
        (0.5, -2.0, -1.6, True),  # fallen enough: 0.8·(−2)
        (1.5, -2.0, -3.0, False),  # risen though it was bad: the gradient stays
        (1.1, -2.0, -2.2, False),  # inside the range
    ],
)
def test_clipped_objective_worked_numbers(ratio: float, advantage: float, surrogate: float, clipped: bool) -> None:
    """min(ρA, clip(ρ, 0.8, 1.2)A); where the clip is active the gradient is zero, elsewhere it is ρA."""
    log_prob = torch.tensor([math.log(ratio) - 1.0], dtype=torch.float64, requires_grad=True)
    found, active = losses.clipped_objective(
        log_prob, torch.tensor([-1.0], dtype=torch.float64), torch.tensor([advantage], dtype=torch.float64), 0.2
    )
    assert float(found.detach()) == pytest.approx(surrogate)
    assert bool(active) is clipped
    found.sum().backward()
    assert log_prob.grad is not None
    assert float(log_prob.grad) == pytest.approx(0.0 if clipped else ratio * advantage)
