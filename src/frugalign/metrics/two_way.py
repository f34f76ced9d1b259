"""Means over seeds crossed with prompts. One interval covers the variation over both seeds and prompts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import special  # stats has the same numbers, at twenty times the cost a call

from frugalign.metrics.intervals import Estimate


@dataclass(frozen=True)
class TwoWayMean:
    """A mean with its interval, and the two-sided p-value of a zero mean (None if nothing varies)."""

    estimate: Estimate
    p_value: float | None


def two_way_mean(
    values: Sequence[Sequence[float | None]], *, level: float = 0.95, share: bool = False
) -> TwoWayMean | None:
    """Mean of `values[seed][prompt]` with a t-interval for two crossed random effects.

    With S seeds and P prompts the variance of the mean is estimated by `s_A²/S + s_B²/P − s_E²/(S·P)`. The terms are
    the variances of the seed means, of the prompt means, and of the residuals. The residual variance is in both of
    the first two terms, hence subtracted once. Degrees of freedom follow Satterthwaite.

    A few seeds may agree by chance, which would make the interval too narrow. It is therefore never narrower than the
    t-interval over the seed means alone, or over the prompt means alone. With one seed only the interval over prompts
    is available, and vice versa.

    Args:
        values: None if a measure does not apply. A prompt without a value under some seed is left out.
        share: values are shares, so use Wilson's interval, which stays within [0, 1]. Its number of independent rows
            is the effective one, `p(1 − p)/variance`, or the number of prompts if all values are 0 or all 1. No
            p-value is given.

    Returns:
        None if fewer than two values are left. `n` is their number.
    """
    rows = [[math.nan if value is None else float(value) for value in row] for row in values]
    if not rows or len({len(row) for row in rows}) != 1:
        raise ValueError("every seed needs the same prompts")
    table = np.array(rows, dtype=np.float64).reshape(len(rows), -1)
    table = table[:, ~np.isnan(table).any(axis=0)]
    if table.size < 2:
        return None
    mean, n = float(table.mean()), int(table.size)
    if share and np.isin(table, (0.0, 1.0)).all() and table.min() == table.max():
        # Nothing varies: take the prompts as the independent rows.
        return TwoWayMean(_wilson(mean, table.shape[1], _z(level), n), None)
    terms = _terms(table)
    width, freedom = _width(terms, (1 + level) / 2)
    if width == 0:
        return TwoWayMean(Estimate(mean, mean, mean, n), 1.0 if mean == 0 else None)
    t = float(special.stdtrit(freedom, (1 + level) / 2))
    if share and 0 < mean < 1:
        return TwoWayMean(_wilson(mean, mean * (1 - mean) / (width / t) ** 2, t, n), None)
    return TwoWayMean(Estimate(mean, mean - width, mean + width, n), _p_value(abs(mean), terms))


def _z(level: float) -> float:
    return float(special.ndtri((1 + level) / 2))


def _terms(table: NDArray[np.float64]) -> list[tuple[float, float]]:
    """(variance of the mean, degrees of freedom) over seeds, over prompts, and over both. The widest interval is
    used."""
    seeds, prompts = table.shape
    by_seed = float(table.mean(1).var(ddof=1)) / seeds if seeds > 1 else 0.0
    by_prompt = float(table.mean(0).var(ddof=1)) / prompts if prompts > 1 else 0.0
    found = [(by_seed, seeds - 1.0)] * (seeds > 1) + [(by_prompt, prompts - 1.0)] * (prompts > 1)
    if len(found) == 2:
        rest = table - table.mean(1, keepdims=True) - table.mean(0, keepdims=True) + table.mean()
        freedom = (seeds - 1.0) * (prompts - 1.0)
        residual = float((rest**2).sum()) / freedom / (seeds * prompts)
        variance = max(by_seed + by_prompt - residual, by_seed, by_prompt)
        below = by_seed**2 / (seeds - 1) + by_prompt**2 / (prompts - 1) + residual**2 / freedom
        if below > 0:
            found.append((variance, max(seeds - 1.0, variance**2 / below)))
    return found


def _width(terms: Sequence[tuple[float, float]], quantile: float) -> tuple[float, float]:
    """The widest half-width, and its degrees of freedom."""
    return max(
        (float(special.stdtrit(freedom, quantile)) * math.sqrt(variance), freedom) for variance, freedom in terms
    )


def _p_value(distance: float, terms: Sequence[tuple[float, float]]) -> float:
    """Two-sided p-value, the largest over the terms. Exactly the intervals of a level below 1 − p exclude 0."""
    return max(
        2 * float(special.stdtr(freedom, -distance / math.sqrt(variance)))
        for variance, freedom in terms
        if variance > 0
    )


def _wilson(p: float, rows: float, t: float, n: int) -> Estimate:
    """Wilson's score interval for `rows` independent rows, with t in place of z."""
    centre, below = p + t * t / (2 * rows), 1 + t * t / rows
    half = t * math.sqrt(p * (1 - p) / rows + t * t / (4 * rows * rows))
    return Estimate(p, max(0.0, min(p, (centre - half) / below)), min(1.0, max(p, (centre + half) / below)), n)
