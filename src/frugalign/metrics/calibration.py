"""Calibration of confidences: expected calibration error and the points of a reliability plot."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Reliability:
    """Per bin: mean confidence, share correct, and count. `ece`: the mean absolute gap between the two, weighted by
    count."""

    confidence: list[float]
    accuracy: list[float]
    count: list[int]
    ece: float


def reliability(confidence: Sequence[float], right: Sequence[bool], n_bins: int = 10) -> Reliability:
    """Bins of equal width over [0.5, 1], the range of confidence in the likelier of two answers. Empty bins are left
    out.

    `confidence[i]` in [0.5, 1]; `right[i]`: whether that answer was the better one.
    """
    values, truth = np.asarray(confidence, dtype=np.float64), np.asarray(right, dtype=np.float64)
    index = np.clip(((values - 0.5) * 2 * n_bins).astype(int), 0, n_bins - 1)
    means, shares, counts = [], [], []
    for place in range(n_bins):
        inside = index == place
        if inside.any():
            means.append(float(values[inside].mean()))
            shares.append(float(truth[inside].mean()))
            counts.append(int(inside.sum()))
    total = max(1, len(values))
    ece = sum(n * abs(mean - share) for mean, share, n in zip(means, shares, counts, strict=True)) / total
    return Reliability(means, shares, counts, float(ece))
