"""The examples: their rewards on worked answers, and prompts that no two splits share."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from frugalign.rewards.loading import load_rewards

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
WORDS = " ".join(f"w{n}" for n in range(1, 60))


def prompts(file: Path) -> list[str]:
    return [json.loads(line)["prompt"] for line in file.read_text("utf-8").splitlines()]


@pytest.mark.parametrize(
    ("answer", "earned"),
    [
        ("The capital of Brazil is Brasília.", 1.0),
        ("The capital of Brazil is", 0.0),  # cut
        ("Too short.", 0.0),
        ("", 0.0),
        ("a b a b a b a b.", 3 / 7),  # three distinct pairs of seven
        (" ".join(WORDS.split()[:41]) + " end.", (60 - 42) / 35),
        (WORDS + " end.", 0.0),
    ],
)
def test_a_short_finished_answer_earns_most(answer: str, earned: float) -> None:
    (reward,) = load_rewards(str(EXAMPLES / "to-the-point" / "reward.py:reward"))
    assert reward.function(prompts=["?"], completions=[answer]) == pytest.approx([earned])


def test_no_prompt_is_in_two_splits_or_twice() -> None:
    folder = EXAMPLES / "to-the-point"
    found = [*prompts(folder / "train.jsonl"), *prompts(folder / "test.jsonl")]
    assert len(found) == len(set(found)) == 380


def test_prompts_that_look_harmful_are_distinct() -> None:
    found = prompts(EXAMPLES / "safe" / "looks-harmful.jsonl")
    assert len(found) == len(set(found)) > 100
