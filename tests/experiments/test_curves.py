"""What scripts read from studies: the best reward within a distance, and the tokens sampled until a reward is reached."""

from __future__ import annotations

import pytest
from experiments.frontier import best_within
from experiments.sample_efficiency import curve_of


@pytest.mark.parametrize(("most", "reward"), [(3, None), (5, 0.2), (8, 0.5), (20, 0.5)])
def test_the_best_within_a_distance(most: float, reward: float | None) -> None:
    points = [[0.2, 0.1, 0.3, 4.0], [0.5, 0.4, 0.6, 8.0], [0.3, 0.2, 0.4, 12.0]]
    found = best_within(points, most)
    assert (found and found[0]) == reward


@pytest.mark.parametrize("name", ["completion_length", "completions/mean_length"])
def test_tokens_until_a_reward(name: str) -> None:
    """Rollouts of 10, 10, 10, 10, 20, 20 tokens a response: 800 tokens are shared out as 100 … 200. A running mean needs five rollouts."""
    log = [{"step": n, "reward": float(n), name: 10.0 if n < 5 else 20.0} for n in range(1, 7)]
    curve = curve_of([*log, {"step": 6, "loss": 1.0}], 800)
    assert curve.tokens == pytest.approx([600, 800]) and curve.rewards == [3.0, 4.0]
    assert curve.reached(3.5) == pytest.approx(800) and curve.reached(5.0) is None
