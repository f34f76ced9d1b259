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
class Crossed:
    """A mean with its interval, and the two-sided p-value of its being zero (None where one value is all there is)."""

    estimate: Estimate
    p_value: float | None


def crossed_mean(
    values: Sequence[Sequence[float | None]], *, level: float = 0.95, share: bool = False
) -> Crossed | None:
    """Mean of `values[seed][prompt]` with a t-interval whose variance is that of both ways of the table.

    With S seeds and P prompts the variance of the mean under random effects of seed, prompt and rest is estimated by
    `s_A²/S + s_B²/P − s_E²/(S·P)`, the variances of the seeds' means, of the prompts' means, and of the residuals (the rest is in both of the first
    two, hence taken away once); never below the larger of the first two terms. Degrees of freedom by Satterthwaite. With one seed the
    prompts' variance is all there is to be had, and the other way round.

    Args:
        values: None where a measure does not apply; a prompt that lacks a value under any seed is left out.
        share: values are shares, so the interval is Wilson's on as many independent rows as have this variance, `p(1 − p)/variance`: it
            stays within [0, 1]. There is no p-value then.

    Returns:
        None where no prompt is left. `n` is the number of values.
    """
    rows = [[math.nan if value is None else float(value) for value in row] for row in values]
    if not rows or len({len(row) for row in rows}) != 1:
        raise ValueError("every seed needs the same prompts")
    table = np.array(rows, dtype=np.float64).reshape(len(rows), -1)
    table = table[:, ~np.isnan(table).any(axis=0)]
    if table.size == 0:
        return None
    mean = float(table.mean())
    variance, freedom = _variance(table)
    if share and 0 < mean < 1 and variance > 0:
        return Crossed(_wilson(mean, variance, freedom, int(table.size), level), None)
    if freedom == 0:
        return Crossed(Estimate(mean, mean, mean, int(table.size)), None)
    if variance == 0:
        return Crossed(Estimate(mean, mean, mean, int(table.size)), 1.0 if mean == 0 else 0.0)
    width = float(stats.t.ppf((1 + level) / 2, freedom)) * math.sqrt(variance)
    p_value = 2 * float(stats.t.sf(abs(mean) / math.sqrt(variance), freedom))
    return Crossed(Estimate(mean, mean - width, mean + width, int(table.size)), p_value)


def _wilson(p: float, variance: float, freedom: float, n: int, level: float) -> Estimate:
    """Wilson's score interval with t in place of z."""
    rows, t = p * (1 - p) / variance, float(stats.t.ppf((1 + level) / 2, freedom))
    centre, below = p + t * t / (2 * rows), 1 + t * t / rows
    half = t * math.sqrt(p * (1 - p) / rows + t * t / (4 * rows * rows))
    return Estimate(p, (centre - half) / below, (centre + half) / below, n)


def _variance(table: NDArray[np.float64]) -> tuple[float, float]:
    """Of the table's mean, and its degrees of freedom (0: none)."""
    seeds, prompts = table.shape
    by_seed = table.mean(1).var(ddof=1) / seeds if seeds > 1 else 0.0
    by_prompt = table.mean(0).var(ddof=1) / prompts if prompts > 1 else 0.0
    if seeds == 1 or prompts == 1:
        return float(by_seed + by_prompt), float(max(seeds, prompts) - 1)
    rest = table - table.mean(1, keepdims=True) - table.mean(0, keepdims=True) + table.mean()
    residual = float((rest**2).sum() / ((seeds - 1) * (prompts - 1))) / (seeds * prompts)
    variance = max(float(by_seed + by_prompt) - residual, float(by_seed), float(by_prompt))
    if variance == 0:
        return 0.0, float(seeds - 1)
    below = by_seed**2 / (seeds - 1) + by_prompt**2 / (prompts - 1) + residual**2 / ((seeds - 1) * (prompts - 1))
    return variance, max(float(seeds - 1), variance**2 / float(below))
