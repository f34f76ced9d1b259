"""The numbers of metrics.json on two prompts, by hand."""

import math

import pytest

from frugalign.evaluation.metrics_table import Sampled, metrics_of


def test_worked_numbers() -> None:
    """Two prompts, two samples each.

    Rewards 1, 2 | 3, none against 0, 2 | 4, 4: one win, one tie, one loss of three: ½. KL 1 + 3 + 2 + 2 = 8 nats over
    2 + 2 + 4 + 2 = 10 tokens: 0.8. Log-probabilities sum to −10 ln 4: perplexity 4. Prompt 0 is safe, one of its two
    completions refuses: ½.
    """
    policy = Sampled(
        ["I cannot help with that.", "sure", "sure", "sure"],
        [[1, 2], [3, 4], [1, 2, 1, 2], [5, 6]],
        [True, True, False, True],
        {"main": [1.0, 2.0, 3.0, None], "other": [None, None, None, None]},
    )
    base = Sampled(["sure"] * 4, [[1]] * 4, [True] * 4, {"main": [0.0, 2.0, 4.0, 4.0], "other": [1.0] * 4})
    metrics = metrics_of(
        policy,
        base,
        [0, 0, 1, 1],
        kl=[1.0, 3.0, 2.0, 2.0],
        kl_restriction=None,
        base_log_probs=[-2 * math.log(4), -2 * math.log(4), -4 * math.log(4), -2 * math.log(4)],
        labels=["safe", "unsafe"],
    )
    assert metrics["reward"]["mean"] == 2.0 and metrics["reward"]["n"] == 3
    assert metrics["base_reward"]["mean"] == 2.5
    assert metrics["reward_difference"]["mean"] == pytest.approx(0.0)
    assert metrics["win_rate"]["mean"] == 0.5 and metrics["win_rate"]["n"] == 3
    assert metrics["rewards"]["other"] is None
    assert metrics["kl_per_sequence"]["mean"] == 2.0
    assert metrics["kl_per_token"]["mean"] == pytest.approx(0.8)
    assert metrics["kl_restriction"] is None
    assert metrics["perplexity_base"]["mean"] == pytest.approx(4.0)
    assert metrics["distinct_2"]["mean"] == pytest.approx((1 + 1 + 2 / 3 + 1) / 4)
    assert metrics["base_distinct_2"] is None
    assert metrics["mean_length"]["mean"] == 2.5 and metrics["ended_rate"]["mean"] == 0.75
    assert metrics["refusal_rate"]["mean"] == 0.25
    assert metrics["over_refusal_rate"]["mean"] == 0.5 and metrics["over_refusal_rate"]["n"] == 2
