"""Means over seeds crossed with prompts: what another seed and other prompts would change, in one interval."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from frugalign.metrics.intervals import Estimate


@dataclass(frozen=True)
class TwoWayMean:
    """A mean with its interval, and the two-sided p-value of its being zero (None where nothing varies)."""

    estimate: Estimate
    p_value: float | None


def two_way_mean(
    values: Sequence[Sequence[float | None]], *, level: float = 0.95, share: bool = False
) -> TwoWayMean | None:
    """Mean of `values[seed][prompt]` with a t-interval whose variance is that of both ways of the table.

    With S seeds and P prompts the variance of the mean under random effects of seed, prompt and rest is estimated by
    `s_A²/S + s_B²/P − s_E²/(S·P)`, the variances of the seeds' means, of the prompts' means, and of the residuals (the rest is in both of the first
    two, hence taken away once), with degrees of freedom by Satterthwaite. Few seeds may agree by chance, and that would narrow the interval as it
    raises the freedom: it is never narrower than the t-interval over the seeds' means alone, or over the prompts' alone. With one seed the prompts'
    is all there is to be had, and the other way round.

    Args:
        values: None where a measure does not apply; a prompt that lacks a value under any seed is left out.
        share: values are shares, so the interval is Wilson's on as many independent rows as have this variance, `p(1 − p)/variance` (where all
            are 0 or all 1: on the prompts): it stays within [0, 1]. There is no p-value then.

    Returns:
        None where fewer than two values are left. `n` is their number.
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
        # Nothing varies, so as many independent rows as there are prompts say how sure that is.
        return TwoWayMean(_wilson(mean, table.shape[1], _z(level), n), None)
    terms = _terms(table)
    width, freedom = _width(terms, (1 + level) / 2)
    if width == 0:
        return TwoWayMean(Estimate(mean, mean, mean, n), 1.0 if mean == 0 else None)
    t = float(stats.t.ppf((1 + level) / 2, freedom))
    if share and 0 < mean < 1:
        return TwoWayMean(_wilson(mean, mean * (1 - mean) / (width / t) ** 2, t, n), None)
    return TwoWayMean(Estimate(mean, mean - width, mean + width, n), _p_value(abs(mean), terms))


def _z(level: float) -> float:
    return float(stats.norm.ppf((1 + level) / 2))


def _terms(table: NDArray[np.float64]) -> list[tuple[float, float]]:
    """(variance of the mean, degrees of freedom) by each way of looking at the table; the interval is the widest of theirs."""
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
    return max((float(stats.t.ppf(quantile, freedom)) * math.sqrt(variance), freedom) for variance, freedom in terms)


def _p_value(distance: float, terms: Sequence[tuple[float, float]]) -> float:
    """Two-sided, the largest by any of the terms: 0 lies outside exactly the intervals whose level is below 1 − p."""
    return max(
        2 * float(stats.t.sf(distance / math.sqrt(variance), freedom)) for variance, freedom in terms if variance > 0
    )


def _wilson(p: float, rows: float, t: float, n: int) -> Estimate:
    """Wilson's score interval on so many independent rows, with t in place of z."""
    centre, below = p + t * t / (2 * rows), 1 + t * t / rows
    half = t * math.sqrt(p * (1 - p) / rows + t * t / (4 * rows * rows))
    return Estimate(p, max(0.0, min(p, (centre - half) / below)), min(1.0, max(p, (centre + half) / below)), n)
