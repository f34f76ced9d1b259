"""Pure statistics over generations: intervals, tests, diversity, refusal detection. No torch, no models."""

from frugalign.metrics.diversity import distinct_n
from frugalign.metrics.intervals import Estimate, mean_interval, paired_difference, preference, ratio_interval, win_rate
from frugalign.metrics.refusal import Agreement, agreement, is_refusal
from frugalign.metrics.testing import holm, length_controlled_win_rate, paired_p_value, wilson_interval

__all__ = [
    "Agreement",
    "Estimate",
    "agreement",
    "distinct_n",
    "holm",
    "is_refusal",
    "length_controlled_win_rate",
    "mean_interval",
    "paired_difference",
    "paired_p_value",
    "preference",
    "ratio_interval",
    "wilson_interval",
    "win_rate",
]
