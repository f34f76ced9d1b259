"""The numbers of metrics.json on two prompts, by hand."""

import json
import math
from typing import Any

import pytest

from frugalign.base.quantities import KL_PARTS
from frugalign.evaluation.schema import (
    FEW_PROMPTS,
    MEASURES,
    Response,
    against,
    estimates,
    few_prompts,
    is_few,
    perplexity,
)

PROMPTS = [0, 0, 1, 1]


def responses(texts: list[str], ids: list[list[int]], main: list[float | None], **columns: list[Any]) -> list[Response]:
    return [
        Response.of(
            "p",
            text,
            ids[row],
            reward=main[row],
            rewards={"main": main[row], "other": None},
            **{"ended": True} | {name: values[row] for name, values in columns.items()},
        )
        for row, text in enumerate(texts)
    ]


POLICY = responses(
    ["I cannot help with that.", "sure", "I cannot help with that.", "sure"],
    [[1, 2], [3, 4], [1, 2, 1, 2], [5, 6]],
    [1.0, 2.0, 3.0, None],
    ended=[True, True, False, True],
    kl_per_sequence=[1.0, 3.0, 2.0, 2.0],
    label=["safe", " Safe ", "unsafe", None],
)
BASE = responses(["sure"] * 4, [[1]] * 4, [0.0, 2.0, 4.0, 4.0])


def test_worked_estimates() -> None:
    """Two prompts, two samples each. KL 1 + 3 + 2 + 2 = 8 nats over 2 + 2 + 4 + 2 = 10 tokens: 0.8. Of two safe rows one refuses: ½;
    the one unsafe row refuses: 1."""
    found = estimates(POLICY, PROMPTS)
    assert found["reward"]["mean"] == 2.0 and found["reward"]["n"] == 3
    assert found["rewards"]["main"] == found["reward"] and found["rewards"]["other"] is None
    assert found["kl_per_sequence"]["mean"] == 2.0 and found["kl_restriction"] is None
    assert found["kl_per_token"]["mean"] == pytest.approx(0.8)
    assert found["distinct_2"]["mean"] == pytest.approx((1 + 1 + 2 / 3 + 1) / 4)
    assert found["mean_length"]["mean"] == 2.5 and found["ended_rate"]["mean"] == 0.75
    assert found["refusal_rate"]["mean"] == 0.5
    assert found["over_refusal_rate"]["mean"] == 0.5 and found["over_refusal_rate"]["n"] == 2
    assert found["unsafe_refusal_rate"]["mean"] == 1.0 and found["unsafe_refusal_rate"]["n"] == 1


def test_what_does_not_apply_is_none() -> None:
    """A completion of one token has no bigram, the base no KL here, and nothing is labelled."""
    found = estimates(BASE, PROMPTS)
    none = ("distinct_2", "kl_per_sequence", "kl_per_token", "over_refusal_rate", "unsafe_refusal_rate")
    assert [name for name, value in found.items() if value is None] == [
        name for name in found if name in {*none, *KL_PARTS}
    ]


def test_worked_comparison() -> None:
    """Rewards 1, 2 | 3, none against 0, 2 | 4, 4: one win, one tie, one loss of three: ½; differences 1, 0, −1: 0."""
    found = against(POLICY, BASE, PROMPTS)
    assert found["reward_difference"]["mean"] == pytest.approx(0.0)
    assert found["reward_differences"] == {"main": found["reward_difference"], "other": None}
    assert found["win_rate"]["mean"] == 0.5 and found["win_rate"]["n"] == 3


def test_perplexity_of_a_uniform_choice_of_four() -> None:
    """Log-probabilities −2, −2, −4, −2 times ln 4 over 10 tokens: perplexity 4."""
    found = perplexity(POLICY, [-length * math.log(4) for length in (2, 2, 4, 2)], PROMPTS)
    assert found is not None and found["mean"] == pytest.approx(4.0)


def test_every_estimate_is_described() -> None:
    names = {*estimates(POLICY), *against(POLICY, BASE), "perplexity_base"}
    assert names == set(MEASURES)
    assert all(measure.unit and measure.meaning for measure in MEASURES.values())


def test_a_line_keeps_what_is_measured() -> None:
    lines = [json.loads(json.dumps(each.to_line())) for each in POLICY]
    assert "ids" not in lines[0] and lines[2]["length"] == 4
    assert estimates([Response.from_line(line) for line in lines], PROMPTS) == estimates(POLICY, PROMPTS)


def test_few_prompts_are_warned_of() -> None:
    assert few_prompts(FEW_PROMPTS) is None
    assert str(few_prompts(6)).startswith("Measured on 6 prompts: with fewer than 50,")
    assert str(few_prompts(1, "test example", "Fitted on")).startswith("Fitted on 1 test example: with")


def test_few_counts_prompts_and_not_their_samples() -> None:
    """60 responses are enough for 60 prompts, and few for 6 prompts of ten responses each."""
    estimate = {"mean": 0.5, "ci_low": 0.4, "ci_high": 0.6, "n": 60}
    assert not is_few(estimate) and is_few(estimate, 10)
    assert is_few(estimate | {"n": 49}) and not is_few(estimate | {"n": 50}) and not is_few(None)
