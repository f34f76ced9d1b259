"""The sequential overseer's integrals: the error of their nodes, and the same in chunks, at any width and precision."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from frugalign.proxy import overseer, proposal_clocks
from frugalign.proxy.proposal_clocks import ProposalClocks, log_rates, nodes

RAREST = [0.9, 0.3, 1e-2, 1e-4, 1e-6, math.exp(-18)]


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-9), (torch.float32, 1e-6)])
def test_every_exponential_of_a_rate_between_the_rarest_and_one_is_integrated(dtype: torch.dtype, bound: float) -> None:
    """The relative error of any mixture of them with positive weights, such as `first`, is no larger. Rows share their number of nodes."""
    t, weight = nodes(torch.tensor(RAREST, dtype=dtype))
    for row, rarest in enumerate(RAREST):
        own = nodes(torch.tensor([rarest], dtype=dtype))
        rates = torch.linspace(math.log(rarest), 0.0, 2000, dtype=torch.float64).exp()
        for times, weights in ((t[row], weight[row]), (own[0][0], own[1][0])):
            found = torch.exp(-rates[:, None] * times.double()) @ weights.double()
            assert float((found * rates - 1).abs().max()) < bound
    assert nodes(torch.tensor([1e-2], dtype=dtype))[0].shape[1] < t.shape[1] // 2


def subsets(rate: list[float], a: list[float]) -> list[float]:
    """π by a recursion over the sets of rejected candidates, in exact sums of positive numbers."""
    size = len(rate)
    reached, pi = {0: 1.0}, [0.0] * size
    for rejected in range((1 << size) - 1):
        left = [c for c in range(size) if not rejected >> c & 1]
        total = math.fsum(rate[c] for c in left)
        for c in left:
            proposed = reached.get(rejected, 0.0) * rate[c] / total
            pi[c] += proposed * (a[c] if len(left) > 1 else 1.0)
            beyond = rejected | 1 << c
            reached[beyond] = reached.get(beyond, 0.0) + proposed * (1 - a[c])
    return pi


def states(n: int, width: int, *, bias: float, spread: float, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """`log_p`, scores and mask `[n, width]` of rows with 1 to `width` candidates."""
    generator = torch.Generator().manual_seed(seed)
    logits = spread * torch.randn(n, width, generator=generator, dtype=torch.float64)
    mask = torch.arange(width) < torch.randint(1, width + 1, (n, 1), generator=generator)
    score = bias + 2 * torch.randn(n, width, generator=generator, dtype=torch.float64)
    return logits.masked_fill(~mask, -math.inf).log_softmax(-1), score, mask


@pytest.mark.parametrize("bias", [-6.0, 0.0, 6.0])
@pytest.mark.parametrize("spread", [0.5, 4.0])
def test_log_pi_is_the_recursion_over_sets(bias: float, spread: float) -> None:
    """|Δ log π| < 1e-7 also for candidates that are hardly ever emitted; in float32 < 1e-5."""
    log_p, score, mask = states(12, 8, bias=bias, spread=spread)
    rate = log_rates(log_p).exp()
    exact = torch.full_like(log_p, -math.inf)
    for row in range(len(log_p)):
        count = int(mask[row].sum())
        pi = subsets(rate[row, :count].tolist(), score[row, :count].sigmoid().tolist())
        exact[row, :count] = torch.tensor(pi, dtype=torch.float64).log()
    for dtype, bound in ((torch.float64, 1e-7), (torch.float32, 1e-5)):
        log_a, log_1ma = overseer.log_acceptance(score.to(dtype))
        found = overseer.sequential_log_pi(log_p.to(dtype), log_a, log_1ma, mask)
        assert float((found.double() - exact)[mask].abs().max()) < bound
        assert bool((found[~mask] == -math.inf).all())


def test_what_is_last_is_left_out_only_where_it_is_lost_in_rounding() -> None:
    """Where 60 rows accept nearly everything, log π with every `last` is the same to 1e-12; where they do not, it is not."""
    for bias, is_lost in ((25.0, True), (2.0, False)):
        log_p, score, mask = states(60, 8, bias=bias, spread=1.0)
        log_a, log_1ma = overseer.log_acceptance(score)
        some = (mask.sum(-1) > 1)[:, None] & mask  # the only candidate is always the last
        log_p, mask = log_p[some.any(-1)], mask[some.any(-1)]
        log_a, log_1ma = log_a[some.any(-1)], log_1ma[some.any(-1)]
        clocks = ProposalClocks(log_p, mask)
        first, last = clocks.integrals(log_a.exp(), log_1ma.exp())
        assert bool((last == 0).all()) == is_lost
        found = overseer.sequential_log_pi(log_p, log_a, log_1ma, mask)
        back = clocks._order.argsort()
        none = log_1ma.masked_fill(~mask, 0.0).sum(-1, keepdim=True)
        raw = log_p + torch.logaddexp(log_a + first.log(), none + clocks._last[back].log())
        whole = raw.masked_fill(~mask, -math.inf).log_softmax(-1)
        torch.testing.assert_close(found[mask], whole[mask], atol=1e-12, rtol=0)


def test_clocks_are_kept_for_the_next_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same to the last bit as clocks built anew, whether all of S, some of it or none is kept."""
    log_p, score, mask = states(40, 6, bias=0.0, spread=1.0)
    monkeypatch.setattr(proposal_clocks, "_ELEMENTS", 2000)
    anew = overseer.sequential_log_pi(log_p, *overseer.log_acceptance(score), mask)
    kept = []
    for most in (1 << 24, 3000, 0):
        monkeypatch.setattr(proposal_clocks, "_KEPT", most)
        clocks = ProposalClocks(log_p, mask)
        kept.append(sum(part._silent is not None for part in clocks._parts))
        for _ in range(2):
            found = overseer.sequential_log_pi(log_p, *overseer.log_acceptance(score), mask, clocks)
            assert torch.equal(found, anew)
    assert kept[0] > kept[1] > kept[2] == 0


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Log-probabilities and gradients of 60 rows at once and of a few at a time, and of no row at all."""
    log_p, score, mask = states(60, 9, bias=1.0, spread=2.0)

    def run() -> tuple[Tensor, Tensor]:
        asked = score.clone().requires_grad_()
        found = overseer.sequential_log_pi(log_p, *overseer.log_acceptance(asked), mask)
        (gradient,) = torch.autograd.grad(found[mask].square().sum(), asked)
        return found.detach(), gradient

    whole, gradient = run()
    monkeypatch.setattr(proposal_clocks, "_ELEMENTS", 2000)
    parts, of_parts = run()
    sizes = [part.rows.stop - part.rows.start for part in ProposalClocks(log_p, mask)._parts]
    assert len(sizes) > 5 and max(sizes) < 60
    torch.testing.assert_close(parts, whole, atol=1e-8, rtol=0)
    torch.testing.assert_close(of_parts, gradient, atol=1e-7, rtol=1e-7)
    assert overseer.sequential_log_pi(*(each[:0] for each in (log_p, score, score, mask))).shape == (0, 9)


@pytest.mark.parametrize("level", [100.0, -100.0])
def test_certain_acceptances_have_finite_gradients(level: float) -> None:
    """In float32 `1 − a` is zero at a score of 100, and `a` at −100."""
    log_p, _, mask = states(20, 6, bias=0.0, spread=4.0)
    score = torch.full((20, 6), level, requires_grad=True)
    log_pi = overseer.sequential_log_pi(log_p.float(), *overseer.log_acceptance(score), mask)
    assert bool(log_pi[mask].isfinite().all())
    log_pi[mask].sum().backward()
    assert score.grad is not None and bool(score.grad.isfinite().all())


def test_the_gradient_is_that_of_finite_differences() -> None:
    log_p, score, mask = states(6, 4, bias=0.0, spread=1.0)
    clocks, a = ProposalClocks(log_p, mask), score.sigmoid().requires_grad_()
    assert torch.autograd.gradcheck(lambda value: clocks.integrals(value, 1 - value)[0], a)
