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
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from frugalign.decoding.waits import looking_is_free


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
_RAREST = -18.0
"""Sequential proposals come at no lower a log-rate. The nodes then span every rate, whatever the base is sure of."""
_ELEMENTS = 1 << 18
"""Elements of `[n, K, nodes]` held at once on a CPU, where they fit into the cache. Elsewhere 64 times as many."""
_KEPT = 1 << 24
"""Elements of `S` that are kept for the next evaluation."""


def log_rates(log_p: Tensor) -> Tensor:
    """Log-rates of the clocks: `log p`, but at least −18 at real columns."""
    return torch.where(log_p > -math.inf, log_p.clamp(min=_RAREST), log_p)


class ProposalClocks:
    """The clocks of some positions: all that no acceptance changes, so that it is computed once for many steps of training.

    Args:
        log_p: `[N, K]` of the proposals; mask: `[N, K]`, true for real candidates, which come first in a row.
    """

    def __init__(self, log_p: Tensor, mask: Tensor) -> None:
        self.log_rate = log_rates(log_p)
        rate, mask = self.log_rate.exp(), mask & (log_p > -math.inf)
        self._order, bounds = _chunks(rate, mask)
        # Rows are in the chunks' order from here on.
        self._rate, self._mask = rate[self._order], mask[self._order]
        self._parts, kept = [], 0
        for start, end, width in bounds:
            part = _Part(slice(start, end), self._rate[start:end, :width], self._mask[start:end, :width])
            kept += part.keep() if kept < _KEPT else 0
            self._parts.append(part)

    def integrals(self, a: Tensor, rejection: Tensor) -> tuple[Tensor, Tensor]:
        """`first` and `last` of every candidate, `[N, K]`, 1 at padding. `first` is differentiable in the acceptances.

        What is last matters by the probability that all reject, `Π(1 − a)`. Where that is lost in rounding, `last` may be zero.

        Args:
            a: `[N, K]`; rejection: `1 − a`, which a float cannot hold where `a` is nearly 1.
        """
        a, rejection = a[self._order], rejection[self._order]
        first: Tensor = _First.apply(a, rejection, self._mask, self._parts)
        # π_c ≥ p_c·a_c, since first ≥ 1. And p_c·last ≤ 1.
        none = rejection.detach().masked_fill(~self._mask, 1.0).prod(-1)
        least = (self._rate * a.detach()).masked_fill(~self._mask, math.inf).amin(-1)
        is_lost = looking_is_free(a) and bool((none <= torch.finfo(a.dtype).eps * least).all())
        last = torch.zeros_like(self._rate) if is_lost else self._last
        back = torch.empty_like(self._order).scatter_(0, self._order, torch.arange(len(a), device=a.device))
        return first[back], last[back]

    @cached_property
    def _last(self) -> Tensor:
        last = torch.ones_like(self._rate)
        for part in self._parts:
            last[part.rows, : part.width] = part.last()
        return last.masked_fill_(~self._mask, 1.0)


def nodes(rarest: Tensor, *, closer: float = 1.0) -> tuple[Tensor, Tensor]:
    """Times and weights `[n, M]` that integrate `e^{−λt}` over `t ≥ 0` for every rate λ from `rarest [n]` to 1.

    All rows have as many nodes as the one with the rarest clock needs. `closer`: of this share of the usual distance.
    """
    rule = _RULES[rarest.dtype]
    end = math.log(rule.gone) - rarest.double().log()
    latest = float(end.max()) if looking_is_free(rarest) else math.log(rule.gone) - _RAREST
    n_nodes = 1 + math.ceil((latest - rule.start) / (closer * rule.step))
    step = ((end - rule.start) / (n_nodes - 1))[:, None]
    x = rule.start + step * torch.arange(n_nodes, device=rarest.device)
    shrunk = torch.exp(-x)
    t = torch.exp(x - shrunk)
    return t.to(rarest), (step * t * (1 + shrunk)).to(rarest)


class _Part:
    """Some rows in the chunks' order, with weights `[n, M]` of their nodes. At padding every factor is 1 and every term 0."""

    def __init__(self, rows: slice, rate: Tensor, mask: Tensor) -> None:
        self.rows, self.width, self.mask = rows, rate.shape[1], mask
        self._rate = rate.masked_fill(~mask, math.inf)[:, :, None]
        self._rarest = rate.masked_fill(~mask, 1.0).amin(-1)
        self._times, self.weight = nodes(self._rarest)
        self._silent: Tensor | None = None

    def silent(self) -> Tensor:
        """`S [n, K, M]`, as good as 0 at padding."""
        return _exponents(self._rate, self._times).exp_() if self._silent is None else self._silent

    def keep(self) -> int:
        """Keep `S`. Returns its number of elements."""
        self._silent = self.silent()
        return self._silent.numel()

    def last(self) -> Tensor:
        times, weight = nodes(self._rarest, closer=_CLOSER)
        exponent = _exponents(self._rate, times)
        rung = exponent.expm1()  # with a minus sign, which all terms of a row share in the end
        factor = (weight * rung.prod(1))[:, :, None]
        return (exponent.exp_().div_(rung) @ factor).squeeze(-1).abs()


class _First(torch.autograd.Function):
    """Works through the parts in both directions, so that `[N, K, nodes]` never exists as a whole."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, rejection: Tensor, mask: Tensor, parts: list[_Part]) -> Tensor:
        ctx.save_for_backward(a, rejection, mask)
        ctx.parts = parts
        first = torch.ones_like(a)
        for part in parts:
            silent, passed, factor = _factors(part, a, rejection)
            first[part.rows, : part.width] = (passed.reciprocal_().mul_(silent) @ factor).squeeze(-1)
        return first.masked_fill_(~mask, 1.0)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        a, rejection, mask = ctx.saved_tensors
        to_a, to_rejection = torch.zeros_like(a), torch.zeros_like(a)
        gradient = gradient.masked_fill(~mask, 0.0)
        for part in ctx.parts:
            silent, passed, factor = _factors(part, a, rejection)
            share = (silent / passed).mul_(gradient[part.rows, : part.width, None])
            of_passed = (share.sum(1, keepdim=True) - share).div_(passed)
            to_rejection[part.rows, : part.width] = (of_passed @ factor).squeeze(-1)
            to_a[part.rows, : part.width] = (of_passed.mul_(silent) @ factor).squeeze(-1)
        return to_a.masked_fill_(~mask, 0.0), to_rejection.masked_fill_(~mask, 0.0), None, None


def _factors(part: _Part, a: Tensor, rejection: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """`S` and `1 − a(1 − S)`, `[n, K, M]` each, and the latter's product over all candidates times the weights, `[n, M, 1]`."""
    here, silent = (part.rows, slice(part.width)), part.silent()
    left = rejection[here].masked_fill(~part.mask, 1.0)
    passed = torch.addcmul(left[:, :, None], a[here][:, :, None], silent)
    return silent, passed, (part.weight * passed.prod(1))[:, :, None]


def _exponents(rate: Tensor, times: Tensor) -> Tensor:
    """`log S [n, K, M]` of clocks of `rate [n, K, 1]` at `times [n, M]`."""
    return (rate * -times[:, None, :]).clamp_(min=_SILENT)


def _chunks(rate: Tensor, mask: Tensor) -> tuple[Tensor, list[tuple[int, int, int]]]:
    """An order of the rows `[N]`, and of every chunk its start, end and width. Its rows have similar numbers of candidates and nodes."""
    rule, most = _RULES[rate.dtype], _ELEMENTS * (1 if looking_is_free(rate) else 64)
    if not looking_is_free(rate):
        # As if every row had all columns and the rarest clock there is.
        width, largest = rate.shape[1], (math.log(rule.gone) - rule.start - _RAREST) / rule.step
        size = max(1, int(most / (width * largest)))
        starts = range(0, len(rate), size)
        order = torch.arange(len(rate), device=rate.device)
        return order, [(start, min(start + size, len(rate)), width) for start in starts]
    rarest = rate.masked_fill(~mask, 1.0).amin(-1)
    n_nodes = (math.log(rule.gone) - rule.start - rarest.log()) / rule.step
    counts = mask.sum(-1).clamp(min=1)
    order = (counts * 1000 + n_nodes).argsort(stable=True)
    # At most so many elements for each row of a chunk that ends there.
    sizes = (counts[order] * n_nodes[order].cummax(0).values).tolist() if len(order) else []
    widths, bounds, start = counts[order].tolist(), [], 0
    while start < len(order):
        ends = range(start + 2, len(order) + 1)
        end = start + 1 + bisect_left(ends, True, key=lambda end: (end - start) * sizes[end - 1] > most)
        bounds.append((start, end, widths[end - 1]))
        start = end
    return order, bounds
