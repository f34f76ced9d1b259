"""The two overseers as pure functions on tensors: how accepting and rejecting changes the LM's distribution
(`docs/methods/proxy.md#two-overseers`).

Shapes: `B` positions, `K` candidate columns, `mask [B, K]` true for real columns. `score = log a/(1−a)` is the proxy's
logit, `log_p [B, K]` the proposal distribution `p` on the columns, −inf at padding. A kept tail is a column like any other
(`candidates`). Everything is differentiable in `score`.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from frugalign.proxy.proposal_clocks import ProposalClocks, log_rates

Objective = Literal["marginal", "sequential", "sequential_integrated"]

_SURE = 1e-6
"""How far from 1 a proposal's probability is taken to be at least, so that logits of acceptance stay finite."""


def log_acceptance(score: Tensor) -> tuple[Tensor, Tensor]:
    """`log a` and `log(1 − a)` for `a = σ(score)`, both exact in the tails."""
    return logsigmoid(score), logsigmoid(-score)


def even_offset(log_p: Tensor, bias: float) -> Tensor:
    """What is added to logits of acceptance, so that a sequential overseer with logit `bias` everywhere is the base to second order, `[B, K]`.

    It makes `1 − a = r·(1 − p)`, with `r = 1 − σ(bias)`. A constant `a` flattens `p`: whatever is rejected is rejected in favour of the others. Of
    what `c` loses, `r·p·(1 − p_c)`, it gets as much back from those that are rejected before it. Zero at padding.
    """
    share = torch.sigmoid(torch.tensor(-bias, dtype=log_p.dtype))
    rejection = share * -torch.expm1(log_p.clamp(max=-_SURE))
    return torch.log1p(-rejection) - rejection.log() - bias


def scaled_acceptance(log_a: Tensor) -> Tensor:
    """`log(1 − a)` for a given `log a ≤ 0` (used for `a^λ` and for products of several proxies)."""
    # log(1 − e^x) loses all precision if x rounds to 0: keep it a float32 epsilon away.
    log_a = log_a.clamp(max=-1e-7)
    return torch.where(log_a > -math.log(2), torch.log(-torch.expm1(log_a)), torch.log1p(-torch.exp(log_a)))


def marginal_log_pi(log_p: Tensor, log_a: Tensor, mask: Tensor) -> Tensor:
    """`log π(c) = log p(c) + log a(c) − log Σ p·a` on the candidates: proposing with replacement until one is accepted.

    `[B, K]`, −inf at padding. A constant `a` leaves `p` unchanged.
    """
    return torch.log_softmax((log_p + log_a).masked_fill(~mask, -math.inf), -1)


def sequential_log_pi(
    log_p: Tensor, log_a: Tensor, log_1ma: Tensor, mask: Tensor, clocks: ProposalClocks | None = None
) -> Tensor:
    """Emission probability of the sequential overseer (proposals without replacement, the last one emitted without a coin), `[B, K]`.

    Exponential clocks of rate `p(c)` give the proposal order, so with `S_c(t) = e^{−p(c)t}`

        π(c) = p_c a_c ∫ S_c Π_{c'≠c}(1 − a_{c'}(1 − S_{c'})) dt + p_c Π(1 − a) ∫ S_c Π_{c'≠c}(1 − S_{c'}) dt.

    The first term is "accepted, and no earlier proposal was", the second "last of all, after every other was rejected", whatever its own coin shows.
    `clocks`: of these proposals, if they were built before.
    """
    clocks = ProposalClocks(log_p, mask) if clocks is None else clocks
    first, last = clocks.integrals(log_a.exp(), log_1ma.exp())
    none = log_1ma.masked_fill(~mask, 0.0).sum(-1, keepdim=True)
    raw = clocks.log_rate + torch.logaddexp(log_a + first.log(), none + last.log())
    # The probabilities sum to 1 exactly, so normalise away the quadrature's error.
    return torch.log_softmax(raw.masked_fill(~mask, -math.inf), -1)


def sequential_path_log_prob(
    log_a: Tensor, log_1ma: Tensor, rejected: Tensor, choice: Tensor, coin_flipped: Tensor
) -> Tensor:
    """Log-probability of a path of coin flips: `Σ_{rejected} log(1 − a) + [coin flipped]·log a(choice)`, `[B]`.

    Args:
        rejected: `[B, K]`, candidates rejected before the emitted one.
        choice: `[B]` column of the emitted candidate; coin_flipped: `[B]`, false where it was the last one left and is emitted without a coin.
    """
    turned_down = torch.where(rejected, log_1ma, torch.zeros_like(log_1ma)).sum(-1)
    taken = log_a.gather(-1, choice[:, None]).squeeze(-1)
    return turned_down + torch.where(coin_flipped, taken, torch.zeros_like(taken))


def sample_sequential(
    log_p: Tensor, log_a: Tensor, mask: Tensor, gumbel: Tensor, uniform: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The whole accept-or-reject process at a position in one step: a Gumbel permutation, and one coin per candidate.

    Args:
        gumbel: `[B, K]` standard Gumbel draws; uniform: `[B, K]` draws in (0, 1).

    Returns:
        choice `[B]` (column), rejected `[B, K]` (before it), coin_flipped `[B]` (false: the last candidate, which needs none).
    """
    order = (log_rates(log_p) + gumbel.to(log_p.dtype)).masked_fill(~mask, -math.inf)
    accepted = (uniform.log() < log_a.to(uniform.dtype)) & mask
    n_accepted = accepted.any(-1)
    first = order.masked_fill(~accepted, -math.inf).argmax(-1)
    last = order.masked_fill(~mask, math.inf).argmin(-1)
    choice = torch.where(n_accepted, first, last)
    # The last candidate left is emitted whatever its coin shows.
    coin_flipped = choice != last
    rejected = (order > order.gather(-1, choice[:, None])) & mask
    return choice, rejected, coin_flipped


def greedy_choice(log_p: Tensor, log_a: Tensor, mask: Tensor, objective: Objective) -> Tensor:
    """Column of the greedy token `[B]`.

    Marginal: `argmax p·a`. Sequential: in descending `p`, the first with `a ≥ ½`, else `argmax p·a`.
    """
    best = (log_p + log_a).masked_fill(~mask, -math.inf).argmax(-1)
    if objective == "marginal":
        return best
    fine = (log_a >= math.log(0.5)) & mask
    descending = log_p.masked_fill(~fine, -math.inf)
    return torch.where(fine.any(-1), descending.argmax(-1), best)


def choose(log_pi: Tensor, gumbel: Tensor) -> Tensor:
    """Draw a column from `log_pi [B, K]` with `gumbel [B, K]`: `[B]`. The Gumbel-max form: see `BaseGuide`."""
    return (log_pi + gumbel).argmax(-1)


def kl_choice(log_pi: Tensor, log_p: Tensor, mask: Tensor) -> Tensor:
    """`KL(π ‖ p)` on the columns, nats per position, `[B]`. Over the full vocabulary it is the same with the tail kept, and
    `−log p_T(C)` more with it dropped."""
    gap = torch.where(mask, log_pi - log_p, torch.zeros_like(log_p))
    return (torch.where(mask, log_pi, torch.full_like(log_pi, -math.inf)).exp() * gap).sum(-1)


def mass_of(log_prob: Tensor, columns: Tensor, values: Tensor | None = None) -> Tensor:
    """The probability of the true `columns [B, K]` together, or the sum of their `values` weighted by it: `[B]`."""
    weights = log_prob.masked_fill(~columns, -math.inf).exp()
    return (weights if values is None else weights * values).sum(-1)


def entropy(log_pi: Tensor, mask: Tensor) -> Tensor:
    """Entropy of π in nats, `[B]`."""
    finite = torch.where(mask, log_pi, torch.zeros_like(log_pi))
    return -(torch.where(mask, finite.exp(), torch.zeros_like(finite)) * finite).sum(-1)


def relative_acceptance(log_a: Tensor, mask: Tensor) -> Tensor:
    """`ã = a / max_C a` `[B, K]`, zero at padding. It is the reported acceptance, since π ignores a factor common to
    a state."""
    top = log_a.masked_fill(~mask, -math.inf).amax(-1, keepdim=True)
    return (log_a - top).masked_fill(~mask, -math.inf).exp()


def expected_rejections(log_p: Tensor, log_a: Tensor, mask: Tensor) -> Tensor:
    """Marginal overseer: expected number of rejections before acceptance, `1/Σ p·ã − 1`, `[B]`."""
    kept = (log_p.exp() * relative_acceptance(log_a, mask)).sum(-1)
    return 1.0 / kept - 1.0
