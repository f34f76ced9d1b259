"""Means with percentile-bootstrap intervals, resampled by prompt.

Completions of one prompt are not independent, so a cluster (all rows of a prompt) is drawn as a whole. Draws are
seeded: equal numbers give equal intervals.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

_CHUNK = 1 << 22
"""Resampled cluster indices held at once (32 MB)."""


@dataclass(frozen=True)
class Estimate:
    """A mean, its interval and the number of rows behind it."""

    mean: float
    ci_low: float
    ci_high: float
    n: int

    def to_dict(self) -> dict[str, float | int]:
        return asdict(self)


def mean_interval(
    values: Sequence[float | None],
    clusters: Sequence[Hashable] | None = None,
    *,
    level: float = 0.95,
    n_resamples: int = 2000,
    seed: int = 0,
) -> Estimate | None:
    """Mean of `values`, leaving out None. Returns None if nothing is left.

    Args:
        clusters: what each row belongs to (its prompt); default: every row for itself.
    """
    return ratio_interval(values, None, clusters, level=level, n_resamples=n_resamples, seed=seed)


def ratio_interval(
    numerators: Sequence[float | None],
    denominators: Sequence[float] | None,
    clusters: Sequence[Hashable] | None = None,
    *,
    level: float = 0.95,
    n_resamples: int = 2000,
    seed: int = 0,
) -> Estimate | None:
    """`Σ numerators / Σ denominators` (nats over tokens, for example), clusters resampled. Without denominators: the
    mean."""
    groups = range(len(numerators)) if clusters is None else clusters
    weights = [1.0] * len(numerators) if denominators is None else denominators
    rows = [(n, d, c) for n, d, c in zip(numerators, weights, groups, strict=True) if n is not None]
    index: dict[Hashable, int] = {}
    positions = np.array([index.setdefault(cluster, len(index)) for _, _, cluster in rows], dtype=np.int64)
    top = np.bincount(positions, weights=np.array([float(n) for n, _, _ in rows]), minlength=1).astype(np.float64)
    bottom = np.bincount(positions, weights=np.array([float(d) for _, d, _ in rows]), minlength=1).astype(np.float64)
    if not rows or bottom.sum() == 0:
        return None
    ratios = _resampled(top, bottom, n_resamples, seed)
    tail = (1 - level) / 2
    low, high = np.quantile(ratios, [tail, 1 - tail])
    return Estimate(float(top.sum() / bottom.sum()), float(low), float(high), len(rows))


def _resampled(
    top: NDArray[np.float64], bottom: NDArray[np.float64], n_resamples: int, seed: int
) -> NDArray[np.float64]:
    """`n_resamples` ratios of sums over clusters drawn with replacement."""
    rng = np.random.default_rng(seed)
    step = max(1, _CHUNK // len(top))
    parts = []
    for start in range(0, n_resamples, step):
        draws = rng.integers(0, len(top), size=(min(step, n_resamples - start), len(top)))
        below = bottom[draws].sum(1)
        parts.append(top[draws].sum(1)[below > 0] / below[below > 0])
    return np.concatenate(parts)


def paired_difference(
    first: Sequence[float | None],
    second: Sequence[float | None],
    clusters: Sequence[Hashable] | None = None,
    *,
    level: float = 0.95,
    seed: int = 0,
) -> Estimate | None:
    """Mean of `first − second` by row. A row is left out if either value is None."""
    differences = [None if a is None or b is None else a - b for a, b in zip(first, second, strict=True)]
    return mean_interval(differences, clusters, level=level, seed=seed)


def preference(first: float | None, second: float | None) -> float | None:
    """1 if `first` is higher, 0 if `second` is, one half if they are equal up to rounding, None if either is None."""
    if first is None or second is None:
        return None
    return 0.5 if math.isclose(first, second, rel_tol=1e-9, abs_tol=1e-12) else float(first > second)


def win_rate(
    first: Sequence[float | None],
    second: Sequence[float | None],
    clusters: Sequence[Hashable] | None = None,
    *,
    level: float = 0.95,
    seed: int = 0,
) -> Estimate | None:
    """Share of rows where `first` is higher. A tie counts one half."""
    wins = [preference(a, b) for a, b in zip(first, second, strict=True)]
    return mean_interval(wins, clusters, level=level, seed=seed)
