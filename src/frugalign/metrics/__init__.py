"""Pure statistics over generations: intervals, diversity, refusal detection. No torch, no models."""

from frugalign.metrics.diversity import distinct_n
from frugalign.metrics.intervals import Estimate, mean_interval, paired_difference, ratio_interval, win_rate
from frugalign.metrics.refusal import Agreement, agreement, is_refusal

__all__ = [
    "Agreement",
    "Estimate",
    "agreement",
    "distinct_n",
    "is_refusal",
    "mean_interval",
    "paired_difference",
    "ratio_interval",
    "win_rate",
]
