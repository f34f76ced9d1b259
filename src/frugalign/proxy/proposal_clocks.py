"""The integrals of the sequential overseer, over exponential clocks that give the proposal order (`docs/methods/proxy.md#two-overseers`).

A clock of rate `p_c` rings for every candidate, and the proposals come in the order in which they ring. With `S_c(t) = e^{−p_c·t}`, what a
candidate `c` needs is

    first_c = ∫ S_c Π_{c'≠c} (1 − a_{c'}(1 − S_{c'})) dt        nothing that was proposed before c was accepted
    last_c  = ∫ S_c Π_{c'≠c} (1 − S_{c'}) dt                    c is proposed last

The trapezoid rule in `x`, where `t = exp(x − e^{−x})`, evaluates both. The first integrand is a mixture of exponentials `e^{−λt}` with
positive weights and rates between `p_c` and 1. So its relative error is at most the rule's largest on a single one of them,
which is less than 1e-9 in float64 and 1e-6 in float32. The second has weights of both signs, and is compared with enumeration.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class _Rule:
    """Nodes at every `step` in `x` at most, from `start` until the rarest clock has been silent for `gone` of its own units of time."""

    step: float
    start: float
    gone: float


_RULES = {torch.float64: _Rule(0.4, -3.0, 23.0), torch.float32: _Rule(0.5, -2.8, 17.0)}
_CLOSER = 0.7
"""`last` needs closer nodes than a mixture with positive weights."""
_SILENT = -60.0
"""Exponents stop here, far under what could matter, since a processor is slow with denormal numbers."""
_ELEMENTS = 1 << 18
"""Elements of `[n, K, nodes]` held at once on a CPU, where they fit into the cache. Elsewhere 64 times as many."""


def proposal_integrals(a: Tensor, rejection: Tensor, rate: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """`first` and `last` of every candidate, `[N, K]`, 1 at padding. `first` is differentiable in the acceptances.

    What is last matters by the probability that all reject, `Π(1 − a)`. Where that is lost in rounding, `last` is zero.

    Args:
        a: `[N, K]`; rejection: `1 − a`, which a float cannot hold where `a` is nearly 1.
        rate: `p [N, K]`; mask: `[N, K]`, true for real candidates, which come first in a row.
    """
    mask = mask & (rate > 0)
    first: Tensor = _First.apply(a, rejection, rate, mask)
    # π_c ≥ p_c·a_c, since first ≥ 1. And p_c·last ≤ 1.
    none = rejection.detach().masked_fill(~mask, 1.0).prod(-1)
    least = (rate * a.detach()).masked_fill(~mask, math.inf).amin(-1)
    return first, _last(rate, mask, none > torch.finfo(rate.dtype).eps * least)


def nodes(rarest: Tensor, *, closer: float = 1.0) -> tuple[Tensor, Tensor]:
    """Times and weights `[n, M]` that integrate `e^{−λt}` over `t ≥ 0` for every rate λ from `rarest [n]` to 1.

    All rows have as many nodes as the one with the rarest clock needs. `closer`: of this share of the usual distance.
    """
    rule = _RULES[rarest.dtype]
    end = math.log(rule.gone) - rarest.double().log()
    n_nodes = 1 + math.ceil((float(end.max()) - rule.start) / (closer * rule.step))
    step = ((end - rule.start) / (n_nodes - 1))[:, None]
    x = rule.start + step * torch.arange(n_nodes, device=rarest.device)
    shrunk = torch.exp(-x)
    t = torch.exp(x - shrunk)
    return t.to(rarest), (step * t * (1 + shrunk)).to(rarest)


class _First(torch.autograd.Function):
    """Rows are worked through in chunks of similar width, in both directions, so that `[N, K, nodes]` never exists as a whole."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, rejection: Tensor, rate: Tensor, mask: Tensor) -> Tensor:
        ctx.save_for_backward(a, rejection, rate, mask)
        first = torch.ones_like(a)
        for rows, width in _chunks(rate, mask):
            part = _Nodes(*(each[rows, :width] for each in (a, rejection, rate, mask)))
            first[rows, :width] = part.integral()
        return first.masked_fill_(~mask, 1.0)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        a, rejection, rate, mask = ctx.saved_tensors
        to_a, to_rejection = torch.zeros_like(a), torch.zeros_like(a)
        gradient = gradient.masked_fill(~mask, 0.0)
        for rows, width in _chunks(rate, mask):
            part = _Nodes(*(each[rows, :width] for each in (a, rejection, rate, mask)))
            to_a[rows, :width], to_rejection[rows, :width] = part.gradients(gradient[rows, :width])
        return to_a.masked_fill_(~mask, 0.0), to_rejection.masked_fill_(~mask, 0.0), None, None


class _Nodes:
    """What both directions need of some rows: `weight [n, M]`, and `[n, K, M]`. At padding every factor is 1 and every term 0."""

    def __init__(self, a: Tensor, rejection: Tensor, rate: Tensor, mask: Tensor) -> None:
        exponent, weight = _exponents(rate, mask)
        self.silent = exponent.exp_()
        self.passed = torch.addcmul(rejection.masked_fill(~mask, 1.0)[:, :, None], a[:, :, None], self.silent)
        self.factor = (weight * self.passed.prod(1))[:, :, None]

    def integral(self) -> Tensor:
        return ((self.silent / self.passed) @ self.factor).squeeze(-1)

    def gradients(self, gradient: Tensor) -> tuple[Tensor, Tensor]:
        """Of `Σ gradient·first` in the acceptances and in the rejections, `[n, K]` each."""
        share = (self.silent / self.passed).mul_(gradient[:, :, None])
        of_passed = (share.sum(1, keepdim=True) - share).div_(self.passed)
        to_rejection = (of_passed @ self.factor).squeeze(-1)
        return (of_passed.mul_(self.silent) @ self.factor).squeeze(-1), to_rejection


def _last(rate: Tensor, mask: Tensor, needed: Tensor) -> Tensor:
    """`last [N, K]` in the rows where `needed [N]`, and 0 in the others. 1 at padding."""
    last = torch.zeros_like(rate)
    which = needed.nonzero().squeeze(-1)
    for rows, width in _chunks(rate[which], mask[which]):
        rows = which[rows]
        exponent, weight = _exponents(rate[rows, :width], mask[rows, :width], closer=_CLOSER)
        rung = exponent.expm1()  # with a minus sign, which all terms of a row share in the end
        factor = (weight * rung.prod(1))[:, :, None]
        last[rows, :width] = (exponent.exp_().div_(rung) @ factor).squeeze(-1).abs()
    return last.masked_fill_(~mask, 1.0)


def _exponents(rate: Tensor, mask: Tensor, closer: float = 1.0) -> tuple[Tensor, Tensor]:
    """`log S [n, K, M]` of every clock at its row's nodes, as good as −∞ at padding, and their weights `[n, M]`."""
    t, weight = nodes(rate.masked_fill(~mask, 1.0).amin(-1), closer=closer)
    exponent = -rate.masked_fill(~mask, math.inf)[:, :, None] * t[:, None, :]
    return exponent.clamp_(min=_SILENT), weight


def _chunks(rate: Tensor, mask: Tensor) -> Iterator[tuple[Tensor, int]]:
    """Rows that are worked through together, and their width. They have similar numbers of candidates and nodes."""
    rule, most = _RULES[rate.dtype], _ELEMENTS * (1 if rate.device.type == "cpu" else 64)
    rarest = rate.masked_fill(~mask, 1.0).amin(-1)
    n_nodes = (math.log(rule.gone) - rule.start - rarest.log()) / rule.step
    counts = mask.sum(-1).clamp(min=1)
    order = (counts * 1000 + n_nodes).argsort(stable=True)
    # At most so many elements for each row of a chunk that ends there.
    sizes = (counts[order] * n_nodes[order].cummax(0).values).tolist() if len(order) else []
    start = 0
    while start < len(order):
        ends = range(start + 2, len(order) + 1)
        end = start + 1 + bisect_left(ends, True, key=lambda end: (end - start) * sizes[end - 1] > most)
        yield order[start:end], int(counts[order[end - 1]])
        start = end
