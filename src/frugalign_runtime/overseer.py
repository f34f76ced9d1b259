"""How acceptances change the model's distribution: the marginal and the sequential overseer.

It is the mathematics of `frugalign.proxy.overseer` and `frugalign.proxy.proposal_clocks`, without gradients
(`docs/methods/proxy.md#two-overseers`). Shapes: `N` rows, `K` columns of proposals, `mask [N, K]` true at real ones. The tail
is a column like any other.
"""

from __future__ import annotations

import math
from typing import Any

from frugalign_runtime.arrays import Array, log_softmax

_SURE = 1e-6
"""How far from 1 a proposal's probability is taken to be at least, so that logits of acceptance stay finite."""
_STEP, _START, _GONE = 0.4, -3.0, 23.0
"""Nodes of the trapezoid rule at every `_STEP` from `_START`, until the rarest clock was silent for `_GONE` of its own units of time."""
_CLOSER = 0.7
"""`last` has terms of both signs, and needs closer nodes."""
_SILENT = -60.0
"""Exponents stop here, far under what could matter."""
_RAREST = -18.0
"""Proposals come at no lower a log-rate."""
_ELEMENTS = 1 << 22
"""Elements of `[n, K, nodes]` held at once."""


def even_offset(ops: Any, log_p: Array, bias: float) -> Array:
    """What is added to logits of acceptance, so that a sequential overseer with logit `bias` everywhere is the base to second order.

    It makes `1 − a = r·(1 − p)`, with `r = 1 − σ(bias)`. `[N, K]`, zero at padding.
    """
    share = 1.0 / (1.0 + math.exp(bias))
    rejection = -share * ops.expm1(ops.at_most(log_p, -_SURE))
    return ops.log1p(-rejection) - ops.log(rejection) - bias


def scaled_acceptance(ops: Any, log_a: Array) -> Array:
    """`log(1 − a)` for a given `log a ≤ 0`, of `a^λ` or of a product of several proxies."""
    log_a = ops.at_most(log_a, -1e-7)
    return ops.where(log_a > -math.log(2), ops.log(-ops.expm1(log_a)), ops.log1p(-ops.exp(log_a)))


def sequential_log_pi(ops: Any, log_p: Array, log_a: Array, log_1ma: Array, mask: Array) -> Array:
    """Emission probability of the sequential overseer, `[N, K]`, −inf at padding. float64 in, float64 out.

    Proposals come without replacement, and the last one is emitted unasked. Exponential clocks of rate `p(c)` give their order. With
    `S_c(t) = e^{−p(c)t}`

        π(c) = p_c a_c ∫ S_c Π_{c'≠c}(1 − a_{c'}(1 − S_{c'})) dt + p_c Π(1 − a) ∫ S_c Π_{c'≠c}(1 − S_{c'}) dt.
    """
    size = log_p.shape[1] * _n_nodes(_RAREST, _CLOSER)
    rows = max(1, _ELEMENTS // size)
    found = ops.full(log_p.shape, -math.inf, log_p)
    for start in range(0, len(log_p), rows):
        part = slice(start, start + rows)
        found[part] = _sequential_log_pi(ops, log_p[part], log_a[part], log_1ma[part], mask[part])
    return found


def _sequential_log_pi(ops: Any, log_p: Array, log_a: Array, log_1ma: Array, mask: Array) -> Array:
    log_rate = ops.where(log_p > -math.inf, ops.at_least(log_p, _RAREST), log_p)
    first, last = _integrals(ops, ops.exp(log_rate), ops.exp(log_a), ops.exp(log_1ma), mask)
    none = ops.where(mask, log_1ma, 0.0).sum(-1)[:, None]
    raw = log_rate + ops.logaddexp(log_a + ops.log(first), none + ops.log(last))
    # The probabilities sum to 1 exactly, so normalise away the quadrature's error.
    return log_softmax(ops, ops.where(mask, raw, -math.inf))


def _integrals(ops: Any, rate: Array, a: Array, rejection: Array, mask: Array) -> tuple[Array, Array]:
    """The two integrals `first` and `last` of `sequential_log_pi`, `[N, K]`, 1 at padding.

    At padding every factor of a product is 1 up to its sign, and every term of a sum 0.
    """
    rarest = ops.smallest(ops.where(mask, rate, 1.0))
    rate = ops.where(mask, rate, math.inf)[:, :, None]
    a, rejection = ops.where(mask, a, 0.0), ops.where(mask, rejection, 1.0)

    times, weight = _nodes(ops, rarest, 1.0)
    silent = ops.exp(ops.at_least(-rate * times[:, None, :], _SILENT))
    passed = rejection[:, :, None] + a[:, :, None] * silent
    first = (silent / passed * (weight * passed.prod(1))[:, None, :]).sum(-1)

    times, weight = _nodes(ops, rarest, _CLOSER)
    exponent = ops.at_least(-rate * times[:, None, :], _SILENT)
    rung = ops.expm1(exponent)  # with a minus sign, which all terms of a row share in the end
    last = ops.absolute((ops.exp(exponent) / rung * (weight * rung.prod(1))[:, None, :]).sum(-1))
    return ops.where(mask, first, 1.0), ops.where(mask, last, 1.0)


def _nodes(ops: Any, rarest: Array, closer: float) -> tuple[Array, Array]:
    """Times and weights `[N, M]` that integrate `e^{−λt}` over `t ≥ 0` for every rate λ from `rarest [N, 1]` to 1.

    The trapezoid rule in `x`, where `t = exp(x − e^{−x})`.
    """
    end = math.log(_GONE) - ops.log(rarest)
    n_nodes = _n_nodes(float(ops.log(rarest).min()), closer)
    step = (end - _START) / (n_nodes - 1)
    x = _START + step * ops.counted(n_nodes, rarest)
    shrunk = ops.exp(-x)
    return ops.exp(x - shrunk), step * ops.exp(x - shrunk) * (1 + shrunk)


def _n_nodes(log_rarest: float, closer: float) -> int:
    return 1 + math.ceil((math.log(_GONE) - log_rarest - _START) / (closer * _STEP))
