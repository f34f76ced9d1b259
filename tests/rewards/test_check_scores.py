"""Warnings of scores that teach or compare nothing, and their silence where the scores are fine."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from frugalign.rewards import NamedReward
from frugalign.rewards.check_scores import (
    reads_states,
    warn_of_cut_responses,
    warn_of_equal_groups,
    warn_of_useless_rewards,
)

TEXTS = ["a", "bb", "ccc", "dddd", "eeeee", "ffffff", "ggggggg", "hhhhhhhh", "iiiiiiiii", "jjjjjjjjjj"]


def useless(values: list[float | None], completions: list[Any], name: str = "short") -> set[str]:
    return warn_of_useless_rewards([NamedReward(name, lambda **_: values)], {name: values}, completions)


def messages(texts: list[str]) -> list[Any]:
    return [[{"role": "assistant", "content": text}] for text in texts]


def test_a_constant_reward_of_messages_is_told_where_the_text_is(caplog: pytest.LogCaptureFixture) -> None:
    """The mistake of a function that was written for strings: `len` of a message list is 1."""
    completions = messages(TEXTS)
    assert useless([-len(each) / 100 for each in completions], completions) == {"short"}
    assert caplog.messages == [
        "The reward 'short' gave all 10 responses the same value, -0.01, so it tells none of them apart. "
        "It received message lists: the text of a completion is completion[-1]['content']."
    ]


def test_a_constant_reward_of_strings(caplog: pytest.LogCaptureFixture) -> None:
    assert useless([0.1 + 0.2] * 9 + [0.3], TEXTS) == {"short"}  # equal up to rounding
    assert "the same value, 0.3," in caplog.text and "Check that it reads the completion." in caplog.text


def test_a_reward_that_hardly_ever_applies(caplog: pytest.LogCaptureFixture) -> None:
    assert useless([1.0] + [None] * 9, TEXTS) == {"short"}
    assert caplog.messages == ["The reward 'short' is None for 9 of 10 responses: it applies to almost none of them."]


@pytest.mark.parametrize(
    ("values", "completions"),
    [
        ([1.0] * 9 + [1.1], TEXTS),  # one response differs
        ([1.0, 2.0] + [None] * 8, TEXTS),  # a fifth of the responses
        ([1.0] * 10, ["the same answer"] * 10),  # equal answers, equal rewards
        ([1.0] * 3, TEXTS[:3]),  # too few to say
        ([], []),
    ],
)
def test_silence_where_the_scores_may_be_right(
    values: list[float | None], completions: list[Any], caplog: pytest.LogCaptureFixture
) -> None:
    assert useless(values, completions) == set() and not caplog.messages


def test_only_the_constant_one_of_several_rewards_is_named(caplog: pytest.LogCaptureFixture) -> None:
    rewards = [NamedReward(name, len) for name in ("good", "flat")]
    by_name: dict[str, list[float | None]] = {"good": [float(len(text)) for text in TEXTS], "flat": [0.0] * 10}
    assert warn_of_useless_rewards(rewards, by_name, TEXTS) == {"flat"}
    assert len(caplog.messages) == 1 and "'flat'" in caplog.text


def test_equal_rewards_within_each_prompt(caplog: pytest.LogCaptureFixture) -> None:
    """A reward that reads the prompt alone: the prompts differ, but a prompt's responses do not."""
    warn_of_equal_groups([1.0, 1.0, 2.0, 2.0, 3.0, 3.0], 2)
    assert "The 2 responses to a prompt have equal rewards for 3 of 3 prompts" in caplog.text


@pytest.mark.parametrize(
    "totals",
    [
        [1.0, 2.0, 2.0, 2.0, 3.0, 3.0],  # one prompt of three has something to learn from
        [1.0, 1.0, 1.0, 1.0],  # constant: another warning says so
        [1.0, None, float("nan"), 2.0],  # nothing to compare
        [1.0, 1.0],  # one prompt
    ],
)
def test_groups_with_something_to_learn_from_or_too_few(
    totals: list[float | None], caplog: pytest.LogCaptureFixture
) -> None:
    warn_of_equal_groups(totals, 2)
    assert not caplog.messages


def test_cut_responses(caplog: pytest.LogCaptureFixture) -> None:
    warn_of_cut_responses(0.1, 32)
    assert not caplog.messages
    warn_of_cut_responses(0.75, 32)
    warn_of_cut_responses(0.75, 32, may_penalise=True)
    assert "75 % of the responses are cut at max_new_tokens (32)" in caplog.messages[0]
    assert "missing_eos_penalty" not in caplog.messages[0] and "missing_eos_penalty" in caplog.messages[1]
    assert all(record.levelno == logging.WARNING for record in caplog.records)


def test_only_representation_rewards_read_states() -> None:
    class Probes:
        layers = (1,)
        fingerprint = "base"

        def score_states(self, states: Any) -> Any:
            return states

        def __call__(self, **_: Any) -> list[float]:
            return []

    assert reads_states([NamedReward("text", len), NamedReward("probes", Probes())])
    assert not reads_states([NamedReward("text", len)])
