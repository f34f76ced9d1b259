"""Is a difference more than chance? Wilson intervals, sign-flip tests by prompt, Holm's correction, length-controlled
win rates.

Left out on purpose: tests that assume a normal distribution, and a significance threshold for p-values.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Hashable, Mapping, Sequence
from statistics import NormalDist
from typing import TypeVar, overload

import numpy as np
from numpy.typing import NDArray

from frugalign.metrics.intervals import Estimate

_EXACT_CLUSTERS = 12
"""Up to this many clusters, all 2^12 sign patterns are enumerated."""
_CHUNK = 1 << 22
"""Numbers held in memory at once (32 MB)."""
_RIDGE = (0.01, 0.1)
"""Penalties `λ/2·θ²` on intercept and slope. They barely change a fit of a few dozen rows, and keep a fit of
separable rows finite."""

_Name = TypeVar("_Name")
_Floats = NDArray[np.float64]


def wilson_interval(successes: float, n: int, *, level: float = 0.95) -> Estimate | None:
    """A share with Wilson's score interval, which is valid for few rows and for shares near 0 and 1. None without
    rows.

    `(p + z²/2n ± z·√(p(1 − p)/n + z²/4n²)) / (1 + z²/n)`, `p = successes/n` (Wilson 1927). Rows are assumed
    independent. If a prompt has several, use `mean_interval`, which resamples prompts.

    Args:
        successes: how many of `n`. A tie may count one half, which makes the interval conservative.

    Raises:
        ValueError: `successes` is negative or exceeds `n`.
    """
    if n == 0:
        return None
    if not 0 <= successes <= n:
        raise ValueError(f"{successes} of {n} is not a share")
    p, z = successes / n, NormalDist().inv_cdf((1 + level) / 2)
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    # Without successes, or with successes only, rounding would put an end of the interval beyond the share.
    return Estimate(p, max(0.0, min(p, centre - half)), min(1.0, max(p, centre + half)), n)


def paired_p_value(
    differences: Sequence[float | None],
    clusters: Sequence[Hashable] | None = None,
    *,
    n_permutations: int = 10_000,
    seed: int = 0,
) -> float | None:
    """Two-sided p-value of "the mean difference is 0" by a sign-flip test. None if no row is left.

    Under the null either policy could have given either answer, so a cluster's difference is as likely as its
    negative (Fisher 1935). All rows of a cluster flip together. With few differing clusters, all sign patterns are
    enumerated. Otherwise they are sampled, and p is `(1 + hits)/(1 + n_permutations)`, never 0.

    Args:
        differences: first minus second, one per row; None rows are left out.
        clusters: what each row belongs to (its prompt); default: every row for itself.
    """
    groups = range(len(differences)) if clusters is None else clusters
    sums: dict[Hashable, list[float]] = {}
    for value, cluster in zip(differences, groups, strict=True):
        if value is not None:
            sums.setdefault(cluster, []).append(float(value))
    if not sums:
        return None
    totals = np.array([total for values in sums.values() if (total := math.fsum(values)) != 0])
    # Patterns as far from 0 as the observed one count too, so allow for rounding of the sums.
    observed = abs(totals.sum()) - 1e-9 * np.abs(totals).sum()
    if len(totals) <= _EXACT_CLUSTERS:
        signs = np.array(list(itertools.product((1.0, -1.0), repeat=len(totals)))).reshape(
            2 ** len(totals), len(totals)
        )
        return float(np.mean(np.abs(signs @ totals) >= observed))
    rng = np.random.default_rng(seed)
    hits, step = 0, max(1, _CHUNK // len(totals))
    for start in range(0, n_permutations, step):
        flips = rng.integers(0, 2, size=(min(step, n_permutations - start), len(totals)), dtype=np.int8)
        hits += int(np.sum(np.abs((1 - 2 * flips) @ totals) >= observed))
    return (1 + hits) / (1 + n_permutations)


@overload
def holm(p_values: Mapping[_Name, float | None]) -> dict[_Name, float | None]: ...
@overload
def holm(p_values: Sequence[float | None]) -> list[float | None]: ...
def holm(
    p_values: Mapping[_Name, float | None] | Sequence[float | None],
) -> dict[_Name, float | None] | list[float | None]:
    """Holm's correction for multiple comparisons (Holm 1979). The result has the shape of the input.

    Of `m` p-values, the k-th smallest (from 1) becomes the largest of `(m − j + 1)·p_j` over `j ≤ k`, at most 1.
    Rejecting those below α bounds the family-wise error rate by α under any dependence. None stays None and does not
    count towards `m`.

    Raises:
        ValueError: a p-value lies outside [0, 1].
    """
    if isinstance(p_values, Mapping):
        return dict(zip(p_values, holm(list(p_values.values())), strict=True))
    adjusted: list[float | None] = [None] * len(p_values)
    given = sorted((p, place) for place, p in enumerate(p_values) if p is not None)
    if any(not 0 <= p <= 1 for p, _ in given):
        raise ValueError("a p-value must lie in [0, 1]")
    largest = 0.0
    for rank, (p, place) in enumerate(given):
        largest = max(largest, min(1.0, (len(given) - rank) * p))
        adjusted[place] = largest
    return adjusted


def length_controlled_win_rate(
    wins: Sequence[float | None],
    length_differences: Sequence[float | None],
    clusters: Sequence[Hashable] | None = None,
    *,
    level: float = 0.95,
    n_resamples: int = 2000,
    seed: int = 0,
) -> Estimate | None:
    """The win rate a judge would give if both answers were equally long. None if no row is left.

    Follows Dubois et al. 2024 (AlpacaEval 2): logistic regression of `P(win) = σ(a + b·tanh(d/s))`, estimate `σ(a)`.
    Here `d` is the row's length difference. `s` is the standard deviation of all differences, not centred, so that 0
    means equally long. The interval is a percentile bootstrap over clusters with `s` fixed.

    Two of their parts are left out: the difficulty of single instructions, which they fit on a leaderboard's models,
    and the shortened and lengthened answers that they add against gaming. A small ridge replaces their
    cross-validated penalty.

    If one side is always longer, the estimate is an extrapolation and the interval is too narrow. If all differences
    are equal, length has no measurable effect and the result is the plain win rate.

    Args:
        wins: preference for the first in [0, 1]. A tie is one half: two rows of half the weight, a win and a loss.
        length_differences: first minus second, in any unit. A row that is None here or in `wins` is left out.
        clusters: what each row belongs to (its prompt); default: every row for itself.
    """
    groups = range(len(wins)) if clusters is None else clusters
    rows = [
        (float(win), float(difference), cluster)
        for win, difference, cluster in zip(wins, length_differences, groups, strict=True)
        if win is not None and difference is not None
    ]
    if not rows:
        return None
    index: dict[Hashable, int] = {}
    members = np.array([index.setdefault(cluster, len(index)) for _, _, cluster in rows])
    win, difference = np.array([row[0] for row in rows]), np.array([row[1] for row in rows])
    spread = float(difference.std())
    x = np.tanh(difference / spread) if spread > 1e-12 * float(np.abs(difference).max()) else np.zeros(len(rows))
    fitted = _fit(x, win, np.ones((1, len(rows))), np.zeros(2))
    rng = np.random.default_rng(seed)
    step = max(1, _CHUNK // (4 * len(rows)))
    intercepts = []
    for start in range(0, n_resamples, step):
        size = min(step, n_resamples - start)
        drawn = rng.integers(0, len(index), size=(size, len(index)))
        flat = drawn + len(index) * np.arange(size)[:, None]
        times = np.bincount(flat.ravel(), minlength=size * len(index)).reshape(size, len(index))
        intercepts.append(_fit(x, win, times[:, members].astype(np.float64), fitted[0])[:, 0])
    tail = (1 - level) / 2
    low, high = np.quantile(_sigmoid(np.concatenate(intercepts)), [tail, 1 - tail])
    return Estimate(float(_sigmoid(fitted[0, 0])), float(low), float(high), len(rows))


def _fit(x: _Floats, win: _Floats, weights: _Floats, start: _Floats) -> _Floats:
    """`(a, b) [R, 2]` for R weightings `weights [R, N]` of the rows `x [N]`, `win [N]`: ridge logistic regression by Newton's method.

    All R are fitted at once, since a bootstrap needs thousands of fits of two numbers. The damping `log(1 + c)/c`
    ensures convergence from any start; `c` is the step's length times the longest row's (Sun & Tran-Dinh 2019,
    generalised self-concordance).
    """
    design = np.stack([np.ones_like(x), x], -1)
    products = design[:, :, None] * design[:, None, :]
    ridge = np.array(_RIDGE)
    theta = np.tile(start, (len(weights), 1))
    for _ in range(100):
        p = _sigmoid(theta @ design.T)
        gradient = (weights * (win - p)) @ design - ridge * theta
        curvature = np.tensordot(weights * p * (1 - p), products, 1) + np.diag(ridge)
        step = np.linalg.solve(curvature, gradient[:, :, None])[:, :, 0]
        size = math.sqrt(2) * np.linalg.norm(step, axis=-1, keepdims=True)
        theta = theta + step * np.where(size > 1e-12, np.log1p(size) / np.maximum(size, 1e-12), 1.0)
        if float(size.max()) < 1e-9:
            break
    return theta


def _sigmoid(z: _Floats) -> _Floats:
    """`1/(1 + e^−z)`, in a form that does not overflow."""
    half: _Floats = 0.5 * (1 + np.tanh(z / 2))
    return half
