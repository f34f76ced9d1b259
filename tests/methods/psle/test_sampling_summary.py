"""What a round says of its responses: worked gaps and errors, and the warnings."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from frugalign.methods.psle import sampling_summary
from frugalign.methods.psle.config import PSLEConfig
from frugalign.methods.psle.responses import ScoredResponses, assign_branches
from frugalign.methods.psle.sampling_summary import Gap, describe_sampling, warn_of_few
from frugalign.rewards import NamedReward

NAN = float("nan")
REFUSAL = "I'm sorry, but I cannot help with that."


def scored(rewards: list[list[float]], texts: list[list[str]] | None = None) -> ScoredResponses:
    """Responses of these rewards `[P, 2k]`, all with different texts."""
    return ScoredResponses(
        rows=list(range(len(rewards))),
        prompts=[f"prompt {prompt}" for prompt in range(len(rewards))],
        completions=texts or [[f"{prompt}.{place}" for place in range(len(row))] for prompt, row in enumerate(rewards)],
        completion_ids=[[[5 + place] for place in range(len(row))] for row in rewards],
        rewards=torch.tensor(rewards, dtype=torch.float64),
        by_name={"one": [[None if math.isnan(value) else value for value in row] for row in rewards]},
    )


def described(
    found: ScoredResponses, monkeypatch: pytest.MonkeyPatch, *, number: int = 3, threshold: float = 0.5, **options: Any
) -> str:
    """The line that is said about a round."""
    said: list[str] = []
    monkeypatch.setattr(sampling_summary, "say", said.append)
    args = PSLEConfig(output_dir="unused", use_cpu=True, **options)
    describe_sampling(assign_branches(found, args, threshold, 1.0), [NamedReward("one", len)], args, number, threshold)
    assert len(said) == 1
    return said[0]


def test_worked_gap() -> None:
    """k = 2. Gaps of the prompts' couples: (1, 3) → 2, (0, unknown) → 0, (4, 4) → 4, and a prompt without any: mean 2, σ/√3 = 2/√3."""
    rewards = [[0.0, 0.0, 1.0, 3.0], [1.0, 1.0, 1.0, NAN], [0.0, 0.0, 4.0, 4.0], [NAN, NAN, 1.0, 1.0]]
    gap = Gap.of(scored(rewards))
    assert (gap.mean, gap.n) == (2.0, 3) and gap.error == pytest.approx(2 / math.sqrt(3))
    assert gap.reaches_zero  # 2 − 1.96·1.155 = −0.26
    assert not Gap(2.0, 1.0, 3).reaches_zero and Gap(-2.0, 0.1, 3).reaches_zero


def test_a_clear_gain_is_said_without_a_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    texts = [["a", REFUSAL], ["b", REFUSAL], ["c", "d"], [REFUSAL, "e"]]
    line = described(scored([[0.0, 1.0], [0.0, 2.0], [0.0, 0.4], [1.0, 2.0]], texts), monkeypatch)
    # Gains of 1, 2, 0.4 and 1: mean 1.1, standard error 0.33; three are above ½.
    assert line == (
        "Round 3: the principles change the reward by +1.1 ± 0.33 (standard error over 4 prompts); "
        "refusals 25 % plain, 50 % under them; 3 of 4 couples ranked."
    )
    assert not caplog.messages


@pytest.mark.parametrize(
    ("number", "advice"), [(0, "This model may not follow them"), (1, "There is little left to learn from them")]
)
def test_a_gap_that_includes_zero_is_warned_of(
    number: int, advice: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """In a later round it is what a training that worked looks like."""
    line = described(scored([[0.0, 1.0], [1.0, 0.0], [0.5, 0.6], [2.0, 1.9]]), monkeypatch, number=number)
    assert "by +0 ± 0.41 (standard error over 4 prompts)" in line and "1 of 4 couples ranked" in line
    assert len(caplog.messages) == 1
    assert caplog.messages[0].startswith(
        "The principles do not clearly raise the reward: the 95 % interval of the difference is -0.804 to 0.804. "
        + advice
    )


def test_a_constant_reward_is_the_only_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    described(scored([[1.0, 1.0]] * 4), monkeypatch)
    assert len(caplog.messages) == 1 and "gave all 8 responses the same value, 1" in caplog.messages[0]


def test_without_principles_there_is_no_gap(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    line = described(scored([[0.0, 1.0], [1.0, 0.0], [0.5, 0.6], [2.0, 1.9]]), monkeypatch, method="raft")
    assert line == "Round 3: refusals 0 %; 0 of 4 couples ranked." and not caplog.messages


def test_nothing_to_rank(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    described(scored([[0.0, 0.3], [0.0, 0.4], [0.0, 0.35], [0.1, 0.5]]), monkeypatch)
    assert caplog.messages == ["Round 3 has no couple to rank: no gain is above 0.5."]


def test_few_held_out_prompts(caplog: pytest.LogCaptureFixture) -> None:
    warn_of_few(128, 128)
    assert not caplog.messages
    warn_of_few(2, 4)
    assert "measured on 2 held-out prompts, not on eval_prompts = 4" in caplog.messages[0]
    assert caplog.messages[1].startswith("Rounds are measured on 2 held-out prompts: with fewer than 50")
