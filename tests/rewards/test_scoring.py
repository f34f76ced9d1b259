"""The careful call: every way in which a reward can go wrong, and what is passed to it."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from dataclasses import fields
from typing import Any

import numpy as np
import pytest
import torch

from frugalign.base.errors import FrugalignError
from frugalign.base.ledger import Ledger
from frugalign.rewards import CompletionBatch, NamedReward, Scores, TrainerHooks, score

PROMPTS = ["first prompt", "second prompt", "third prompt"]
COMPLETIONS = ["a", "bb", "ccc"]
IDS = [[1], [2, 2], [3, 3, 3]]


def run(*functions: Callable[..., Any], **options: Any) -> Scores:
    rewards = [
        NamedReward(name, function) for name, function in zip(("first", "second", "third"), functions, strict=False)
    ]
    given = {"prompts": PROMPTS, "completions": COMPLETIONS, "completion_ids": IDS}
    given |= {field.name: options.pop(field.name) for field in fields(CompletionBatch) if field.name in options}
    return score(rewards, CompletionBatch(**given), **options)


def length(completions: list[str], **_: Any) -> list[float]:
    return [float(len(completion)) for completion in completions]


def returning(values: Any) -> Callable[..., Any]:
    return lambda **_: values


def test_the_call_is_that_of_trl() -> None:
    seen: dict[str, Any] = {}

    def reward(prompts: Any, completions: Any, completion_ids: Any, **kwargs: Any) -> list[float]:
        seen.update(kwargs, prompts=prompts, completions=completions, completion_ids=completion_ids)
        kwargs["log_extra"]("column", [1, 2, 3])
        kwargs["log_metric"]("metric", 0.5)
        return [0.0] * 3

    # A data set may have columns whose names the call needs itself: they give way, as in TRL.
    run(
        reward,
        columns={"label": ["x", "y", "z"], "completion": ["reference"] * 3},
        hooks=TrainerHooks("state"),
        number=4,
    )
    assert set(seen) == {
        "prompts",
        "completions",
        "completion_ids",
        "label",
        "trainer_state",
        "log_extra",
        "log_metric",
    }
    assert seen["prompts"] == PROMPTS and seen["completions"] == COMPLETIONS and seen["completion_ids"] == IDS
    assert seen["label"] == ["x", "y", "z"] and seen["trainer_state"] == "state"


def test_a_trl_reward_runs_unchanged() -> None:
    from trl.rewards import think_format_reward

    messages = [[{"role": "assistant", "content": text}] for text in ("<think>\nwell\n</think>\nyes", "no", "no")]
    assert run(think_format_reward, completions=messages).total == [1.0, 0.0, 0.0]


@pytest.mark.parametrize(
    "values",
    [
        [1, 2, 3],
        (1.0, 2.0, 3.0),
        np.array([1, 2, 3]),
        torch.tensor([1.0, 2.0, 3.0]),
        [np.float32(1), torch.tensor(2.0), 3],
    ],
)
def test_numbers_of_any_make(values: Any) -> None:
    scores = run(returning(values))
    assert scores.total == [1.0, 2.0, 3.0]
    assert all(type(value) is float for value in scores.total)


def test_weights_and_what_does_not_apply() -> None:
    """2·r1 + 10·r2, over those that apply: 2·1 + 10·5, 2·2, none."""
    scores = run(returning([1, 2, None]), returning([5, None, None]), weights=[2, 10])
    assert scores.total == [52.0, 4.0, None]
    assert scores.by_name == {"first": [1.0, 2.0, None], "second": [5.0, None, None]}
    assert scores.n_skipped == 0


def test_coroutines_are_awaited_together_also_inside_a_running_loop() -> None:
    running, most = 0, 0

    async def slow(completions: list[str], **_: Any) -> list[float]:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.05)
        running -= 1
        return [float(len(completion)) for completion in completions]

    assert run(slow, slow, length).total == [3.0, 6.0, 9.0]
    assert most == 2

    async def notebook() -> Scores:
        return run(slow)

    assert asyncio.run(notebook()).total == [1.0, 2.0, 3.0]


def raising(completions: list[str], **_: Any) -> list[float]:
    if "bb" in completions:
        raise KeyError("no such word")
    return length(completions)


async def raising_later(completions: list[str], **_: Any) -> list[float]:
    return raising(completions)


@pytest.mark.parametrize(
    ("function", "reason", "row"),
    [
        (raising, r"raised KeyError \('no such word'\) at .*test_scoring\.py:\d+", 1),
        (raising_later, "raised KeyError .*", 1),
        (returning([1, 2, math.nan]), "returned NaN", 2),
        (returning(torch.tensor([math.inf, 0, 0])), "returned infinity", 0),
        (returning([0, -math.inf, 0]), "returned infinity", 1),
        (returning([0, "1", 0]), "returned '1', which is text", 1),
        (returning([0, [1], 0]), "returned a list, which is not a number", 1),
        (returning([0, {}, 0]), "returned a dict, which is not a number", 1),
        (returning([1, 2]), "returned 2 values for 3 completions", None),
        (returning(1.0), "returned a float, not a list of numbers", None),
        (returning(None), "returned a NoneType, not a list of numbers", None),
        (returning("abc"), "returned a str, not a list of numbers", None),
    ],
)
def test_what_cannot_be_used_stops_with_reward_batch_and_row(function: Any, reason: str, row: int | None) -> None:
    where = "rows 0 to 2" if row is None else rf"row {row} \(prompt '{PROMPTS[row]}'\)"
    with pytest.raises(FrugalignError, match=rf"^The reward 'second' {reason}, in batch 7, {where}\.$"):
        run(length, function, number=7)


@pytest.mark.parametrize("function", [raising, raising_later])
def test_skipping_loses_only_the_failing_row(function: Any) -> None:
    scores = run(length, function, on_error="skip")
    assert scores.total == [2.0, None, 6.0]
    assert scores.by_name == {"first": [1.0, 2.0, 3.0], "second": [1.0, None, 3.0]}
    assert scores.n_skipped == 1


def test_skipping_scores_the_good_rows_together() -> None:
    """A reward that compares its rows sees all that are left, not one at a time."""

    def rank(completions: list[str], **_: Any) -> list[float]:
        if "bb" in completions:
            return [math.nan] * len(completions)
        return [float(sorted(completions).index(completion)) for completion in completions]

    assert run(rank, on_error="skip").total == [0.0, None, 1.0]


def test_skipping_a_reward_that_always_fails_loses_every_row() -> None:
    scores = run(length, returning([1, 2]), on_error="skip")
    assert scores.total == [None, None, None]
    assert scores.n_skipped == 3


def test_every_completion_counts_once_per_reward() -> None:
    ledger = Ledger()
    run(length, length, ledger=ledger)
    assert ledger.reward_calls == 6


def test_arguments_that_do_not_fit() -> None:
    with pytest.raises(FrugalignError, match="2 rewards, but 1 reward_weights"):
        run(length, length, weights=[1.0])
    with pytest.raises(FrugalignError, match="must be raise or skip"):
        run(length, on_error="ignore")
    with pytest.raises(FrugalignError, match="Two rewards are called 'x'"):
        score([NamedReward("x", length), NamedReward("x", length)], CompletionBatch([], [], []))
    assert run(length, prompts=[], completions=[], completion_ids=[]) == Scores([], {"first": []}, 0)
