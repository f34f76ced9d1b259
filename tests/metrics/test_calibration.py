"""Reliability by hand."""

import pytest

from frugalign.metrics.calibration import reliability


def test_reliability_by_hand() -> None:
    """Two bins of [0.5, 1]: .6, .7 (one of two right), .9, .9 (both right), and 1.0 (wrong): ece = (2·|.65 − .5| + 3·|.9333 − .6667|)/5."""
    found = reliability([0.6, 0.7, 0.9, 0.9, 1.0], [True, False, True, True, False], n_bins=2)
    assert found.count == [2, 3] and found.accuracy == pytest.approx([0.5, 2 / 3])
    assert found.confidence == pytest.approx([0.65, 2.8 / 3])
    assert found.ece == pytest.approx((2 * 0.15 + 3 * (2.8 / 3 - 2 / 3)) / 5)
    assert reliability([], []).ece == 0.0
