"""The overseers' formulas against enumeration and naive loops."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from scipy.stats import chi2, ncx2

from frugalign.decoding.noise import Noise, draw, row_keys
from frugalign.proxy import overseer


def random_state(m: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    p = torch.softmax(2 * torch.randn(m, generator=generator, dtype=torch.float64), 0)
    score = 2 * torch.randn(m, generator=generator, dtype=torch.float64)
    return p, score


def enumerate_sequential(p: list[float], a: list[float]) -> list[float]:
    """π by walking through every order of proposals: the probability of the order's prefix times that of its coin flips."""
    m = len(p)
    pi = [0.0] * m
    for order in itertools.permutations(range(m)):
        weight, left = 1.0, 1.0
        for c in order:
            weight *= p[c] / left if left > 1e-300 else 1.0
            left -= p[c]
        survived = 1.0
        for c in order[:-1]:
            pi[c] += weight * survived * a[c]
            survived *= 1 - a[c]
        pi[order[-1]] += weight * survived
    return pi


@pytest.mark.parametrize("m", [2, 3, 5, 7])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_quadrature_agrees_with_enumeration(m: int, seed: int) -> None:
    p, score = random_state(m, seed)
    log_a, log_1ma = overseer.log_acceptance(score)
    pi = overseer.sequential_log_pi(
        p.log()[None], log_a[None], log_1ma[None], torch.ones(1, m, dtype=torch.bool)
    ).exp()[0]
    expected = torch.tensor(enumerate_sequential(p.tolist(), score.sigmoid().tolist()), dtype=torch.float64)
    torch.testing.assert_close(pi, expected, atol=1e-8, rtol=0)


def test_quadrature_holds_for_certain_and_impossible_acceptance() -> None:
    """a → 1 everywhere emits p itself; a → 0 everywhere emits whoever is proposed last."""
    p, _ = random_state(4, 3)
    mask = torch.ones(1, 4, dtype=torch.bool)
    for level in (60.0, -60.0):
        log_a, log_1ma = overseer.log_acceptance(torch.full((1, 4), level, dtype=torch.float64))
        pi = overseer.sequential_log_pi(p.log()[None], log_a, log_1ma, mask).exp()[0]
        expected = torch.tensor(enumerate_sequential(p.tolist(), [1 / (1 + math.exp(-level))] * 4), dtype=torch.float64)
        torch.testing.assert_close(pi, expected, atol=1e-8, rtol=0)


def test_padding_changes_nothing_and_gradients_are_finite() -> None:
    p, score = random_state(3, 4)
    score = score.requires_grad_()
    narrow = overseer.sequential_log_pi(
        p.log()[None], *(x[None] for x in overseer.log_acceptance(score)), torch.ones(1, 3, dtype=torch.bool)
    )
    log_p = torch.cat([p.log(), torch.tensor([-math.inf] * 2)])[None]
    padded = torch.cat([score, torch.zeros(2, dtype=torch.float64)])
    mask = torch.tensor([[True] * 3 + [False] * 2])
    wide = overseer.sequential_log_pi(log_p, *(x[None] for x in overseer.log_acceptance(padded)), mask)
    torch.testing.assert_close(narrow[0], wide[0, :3])
    assert bool((wide[0, 3:] == -math.inf).all())
    wide[0, 1].backward()
    assert score.grad is not None and bool(score.grad.isfinite().all()) and float(score.grad.abs().sum()) > 0


def test_marginal_worked_number() -> None:
    """p = (½, ¼, ¼), a = (½, 1, ½): weights (¼, ¼, ⅛), so π = (0.4, 0.4, 0.2); ã = a; Σ p·ã = ⅝, so 0.6 rejections are expected."""
    log_p = torch.tensor([[0.5, 0.25, 0.25]]).log()
    log_a = torch.tensor([[0.5, 1.0, 0.5]]).log()
    mask = torch.ones(1, 3, dtype=torch.bool)
    torch.testing.assert_close(overseer.marginal_log_pi(log_p, log_a, mask).exp(), torch.tensor([[0.4, 0.4, 0.2]]))
    torch.testing.assert_close(overseer.expected_rejections(log_p, log_a, mask), torch.tensor([0.6]))
    torch.testing.assert_close(
        overseer.kl_choice(overseer.marginal_log_pi(log_p, log_a, mask), log_p, mask),
        torch.tensor([0.4 * math.log(0.8) + 0.4 * math.log(1.6) + 0.2 * math.log(0.8)]),
    )


def test_constant_acceptance_leaves_marginal_unchanged_and_sequential_within_its_bound() -> None:
    """An untrained marginal overseer is p for any b; an untrained sequential one is within 1 − σ(b) in total variation."""
    p, _ = random_state(6, 5)
    mask = torch.ones(1, 6, dtype=torch.bool)
    for b in (-1.0, 0.0, 2.0, 6.0):
        log_a, log_1ma = overseer.log_acceptance(torch.full((1, 6), b, dtype=torch.float64))
        marginal = overseer.marginal_log_pi(p.log()[None], log_a, mask).exp()[0]
        torch.testing.assert_close(marginal, p, atol=1e-6, rtol=0)
        sequential = overseer.sequential_log_pi(p.log()[None], log_a, log_1ma, mask).exp()[0]
        distance = 0.5 * float((sequential - p).abs().sum())
        assert distance <= 1 - 1 / (1 + math.exp(-b)) + 1e-9
        assert distance > 1e-9  # it does flatten p


def test_the_even_offset_worked_numbers() -> None:
    """p = (½, 0.3, 0.2), r = ½: 1 − a = r·(1 − p) = (.25, .35, .4). Two candidates are emitted with exactly p, whatever r; padding adds nothing."""
    log_p = torch.tensor([[0.5, 0.3, 0.2, 0.0], [0.9, 0.1, 0.0, 0.0]], dtype=torch.float64).log()
    rejection = (-overseer.even_offset(log_p, 0.0)).sigmoid()
    torch.testing.assert_close(rejection[0, :3], torch.tensor([0.25, 0.35, 0.4], dtype=torch.float64))
    for bias in (-2.0, 0.0, 3.0):
        offset = overseer.even_offset(log_p, bias)
        assert float(offset[0, 3].abs()) < 1e-12
        log_pi = overseer.sequential_log_pi(log_p, *overseer.log_acceptance(bias + offset), log_p > -math.inf)
        torch.testing.assert_close(log_pi[1, :2], log_p[1, :2], atol=1e-8, rtol=0)
    sure = overseer.even_offset(torch.tensor([[0.0, -20.0]]), 4.0)
    assert bool(sure.isfinite().all())


N_DRAWS = 120_000


def chi_square(counts: torch.Tensor, pi: torch.Tensor) -> tuple[float, float]:
    expected = pi * counts.sum()
    statistic = float(((counts - expected).pow(2) / expected).sum())
    return statistic, float(chi2.ppf(1 - 1e-3, len(pi) - 1))


def draws_of(objective: str, p: torch.Tensor, score: torch.Tensor) -> torch.Tensor:
    m = len(p)
    noise = Noise(row_keys(7, 0, range(N_DRAWS), [0] * N_DRAWS), 3)
    ids = torch.arange(m).expand(N_DRAWS, m)
    log_p, mask = p.log().expand(N_DRAWS, m), torch.ones(N_DRAWS, m, dtype=torch.bool)
    log_a, log_1ma = (x.expand(N_DRAWS, m) for x in overseer.log_acceptance(score))
    if objective == "sequential":
        choice, rejected, coin_flipped = overseer.sample_sequential(
            log_p, log_a, mask, noise.gumbel(1, ids), noise.uniform(2, ids)
        )
        assert bool((rejected.sum(-1) == m - 1)[~coin_flipped].all())
    else:
        row = slice(0, 1)
        form = {
            "marginal": lambda: overseer.marginal_log_pi(log_p[row], log_a[row], mask[row]),
            "sequential_integrated": lambda: overseer.sequential_log_pi(
                log_p[row], log_a[row], log_1ma[row], mask[row]
            ),
        }[objective]
        choice = overseer.choose(form().expand(N_DRAWS, m), noise.gumbel(0, ids))
    return torch.bincount(choice, minlength=m).double()


def naive_draws(objective: str, p: list[float], a: list[float], n: int) -> torch.Tensor:
    """The MDP as it is written down: propose, flip, and (sequential) never propose the same token again."""
    import random

    generator = random.Random(11)
    counts = [0] * len(p)
    for _ in range(n):
        left = list(range(len(p)))
        while True:
            c = generator.choices(left, [p[i] for i in left])[0]
            if (objective != "marginal" and len(left) == 1) or generator.random() < a[c]:
                counts[c] += 1
                break
            if objective != "marginal":
                left.remove(c)
    return torch.tensor(counts, dtype=torch.float64)


@pytest.mark.parametrize("objective", ["marginal", "sequential", "sequential_integrated"])
@pytest.mark.slow
def test_vectorised_samplers_and_naive_loop_share_the_exact_distribution(objective: str) -> None:
    """Chi-square at α = 1e-3 on 1.2e5 draws: both samplers against the exact π; a distribution 0.02 away in total variation fails."""
    p, score = random_state(5, 8)
    a = score.sigmoid()
    if objective == "marginal":
        pi = p * a / (p * a).sum()
    else:
        pi = torch.tensor(enumerate_sequential(p.tolist(), a.tolist()), dtype=torch.float64)
    vectorised = draws_of(objective, p, score)
    naive = naive_draws(objective, p.tolist(), a.tolist(), 100_000)
    for counts in (vectorised, naive):
        statistic, critical = chi_square(counts, pi)
        assert statistic < critical
    off = pi.clone()
    top, other = int(pi.argmax()), int(pi.argsort()[-2])
    off[top] -= 0.02
    off[other] += 0.02
    statistic, critical = chi_square(vectorised, off)
    assert statistic > critical


def test_power_of_the_chi_square_is_at_least_099() -> None:
    """A shift of 0.02 in total variation has non-centrality n·Σ(Δ²/π) ≥ n·(Σ|Δ|)² = n·0.04², whatever π (Cauchy–Schwarz)."""
    for k in (2, 5, 16, 64):
        assert 1 - ncx2.cdf(chi2.ppf(1 - 1e-3, k - 1), k - 1, N_DRAWS * 0.04**2) >= 0.99


def test_path_probability_of_a_worked_path() -> None:
    """Proposals c2 (rejected), c0 (accepted): log(1 − a2) + log a0; when c0 was the last one left, its coin is not flipped."""
    log_a, log_1ma = overseer.log_acceptance(torch.tensor([[0.3, 1.0, -0.7]]))
    rejected = torch.tensor([[False, False, True]])
    both = overseer.sequential_path_log_prob(log_a, log_1ma, rejected, torch.tensor([0]), torch.tensor([True]))
    torch.testing.assert_close(both, (log_1ma[0, 2] + log_a[0, 0])[None])
    unasked = overseer.sequential_path_log_prob(log_a, log_1ma, rejected, torch.tensor([0]), torch.tensor([False]))
    torch.testing.assert_close(unasked, log_1ma[0, 2][None])


def test_path_probabilities_sum_to_the_emission_probability() -> None:
    """Σ over orders of p(order prefix)·P(path) equals π from the quadrature: the flips and the integral describe one process."""
    p, score = random_state(4, 9)
    log_a, log_1ma = overseer.log_acceptance(score)
    pi = torch.zeros(4, dtype=torch.float64)
    for length in range(1, 5):
        for prefix in itertools.permutations(range(4), length):
            weight, left = 1.0, 1.0
            for c in prefix:
                weight, left = weight * float(p[c]) / left, left - float(p[c])
            rejected = torch.zeros(1, 4, dtype=torch.bool)
            rejected[0, list(prefix[:-1])] = True
            coin_flipped = torch.tensor([length < 4])
            path = overseer.sequential_path_log_prob(
                log_a[None], log_1ma[None], rejected, torch.tensor([prefix[-1]]), coin_flipped
            )
            pi[prefix[-1]] += weight * float(path.exp())
    exact = overseer.sequential_log_pi(
        p.log()[None], log_a[None], log_1ma[None], torch.ones(1, 4, dtype=torch.bool)
    ).exp()[0]
    torch.testing.assert_close(pi, exact, atol=1e-8, rtol=0)


def test_greedy_rules() -> None:
    log_p = torch.tensor([[0.6, 0.3, 0.1]]).log()
    mask = torch.ones(1, 3, dtype=torch.bool)
    doubtful = torch.tensor([[0.3, 0.55, 0.9]]).log()
    assert overseer.greedy_choice(log_p, doubtful, mask, "marginal").item() == 0  # 0.18 > 0.165 > 0.09
    assert overseer.greedy_choice(log_p, doubtful, mask, "sequential").item() == 1  # the likeliest with a ≥ ½
    refused = torch.tensor([[0.1, 0.3, 0.4]]).log()
    assert overseer.greedy_choice(log_p, refused, mask, "sequential").item() == 1  # none: argmax p·a


def test_draw_never_takes_a_weightless_column() -> None:
    weights = torch.tensor([[0.0, 1.0, 0.0, 3.0, 0.0]]).expand(4, 5)
    chosen = draw(weights, torch.tensor([1e-12, 0.2499, 0.2501, 1 - 1e-12], dtype=torch.float64))
    assert chosen.tolist() == [1, 1, 3, 3]
