"""Best-of-n on the sandbox: which draw is kept, on what noise, at what cost, and what is said of its KL."""

import json
import math
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from tests.evaluation.evaluated import evaluated

from frugalign import sandbox
from frugalign.base.errors import FrugalignError
from frugalign.base.ledger import Ledger
from frugalign.decoding import Generation, SamplingParams, generate, row_keys
from frugalign.decoding.noise import alternative_keys
from frugalign.engines.loading import LoadedModel, load_model
from frugalign.engines.transformers import TransformersEngine
from frugalign.policies import PolicySpec, SamplingSettings, load
from frugalign.policies.best_of_n import kl_bound
from frugalign.policies.prompt_rows import PromptRows

PROMPTS = ["i want a balm for my knee", "sell me a curse", "a tea for my cough please"]
PARAMS = SamplingParams(max_new_tokens=8)


def shortness(completions: list[str], **_: Any) -> list[float]:
    return [-float(len(text)) for text in completions]


def indifferent(completions: list[str], **_: Any) -> list[float]:
    return [0.0] * len(completions)


def never(completions: list[str], **_: Any) -> list[None]:
    return [None] * len(completions)


def only_long(completions: list[str], **_: Any) -> list[float | None]:
    """Applies to long answers only, and dislikes them."""
    return [-1e6 if len(text) > 25 else None for text in completions]


@cache
def base() -> LoadedModel:
    return load_model(sandbox.model)


@cache
def prompt_ids() -> list[list[int]]:
    return [list(base().tokenizer(prompt)["input_ids"]) for prompt in PROMPTS]


def keys() -> torch.Tensor:
    return row_keys(0, 0, range(3), [0] * 3)


def best_of(n: int, reward: Any, *, batch_size: int = 64, ledger: Ledger | None = None) -> Generation:
    policy = load(PolicySpec(best_of_n=n, selection_reward=(reward,)), base=base())
    settings = policy.with_defaults(SamplingSettings(max_new_tokens=8, prompt_format="raw"))
    return policy.sample(policy.encode(PromptRows(PROMPTS), settings), settings, batch_size=batch_size, ledger=ledger)


def draws(number: int, ledger: Ledger | None = None) -> Generation:
    """The `number`-th completion of every prompt, drawn by itself."""
    noise = alternative_keys(keys(), number)
    return generate(TransformersEngine(base().model, base().tokenizer), prompt_ids(), PARAMS, keys=noise, ledger=ledger)


def rows(n: int = 3) -> Dataset:
    return Dataset.from_dict({"prompt": PROMPTS[:n]})


def test_the_best_is_kept() -> None:
    drawn = [draws(number) for number in range(5)]
    found = best_of(5, shortness)
    better = 0
    for row in range(3):
        ids = [generation.completion_ids[row] for generation in drawn]
        lengths = [len(base().tokenizer.decode(each, skip_special_tokens=True)) for each in ids]
        place = lengths.index(min(lengths))
        assert found.completion_ids[row] == ids[place] and found.ended[row] == drawn[place].ended[row]
        better += place > 0
    assert better, "the first draw must not be the best of every prompt, or nothing is chosen"


def test_the_first_of_equals_is_the_bases_own_completion() -> None:
    plain = generate(TransformersEngine(base().model, base().tokenizer), prompt_ids(), PARAMS, keys=keys())
    for reward in (indifferent, never):
        assert best_of(4, reward).completion_ids == plain.completion_ids
    assert best_of(1, shortness).completion_ids == plain.completion_ids


def test_a_draw_that_no_reward_applies_to_comes_last() -> None:
    drawn = [draws(number).completion_ids for number in range(5)]
    found = best_of(5, only_long).completion_ids
    chosen = 0
    for row in range(3):
        texts = [base().tokenizer.decode(ids[row], skip_special_tokens=True) for ids in drawn]
        first = next((place for place, text in enumerate(texts) if len(text) > 25), 0)
        assert found[row] == drawn[first][row]
        chosen += first > 0
    assert chosen


def test_the_draws_of_a_row_are_scored_in_one_call() -> None:
    """With two rows' draws a call at most, no call holds a part of a row's three."""
    sizes: list[list[str]] = []

    def watched(prompts: list[str], completions: list[str], **_: Any) -> list[float]:
        sizes.append(prompts)
        return [0.0] * len(completions)

    best_of(3, watched, batch_size=7)
    assert sizes == [[PROMPTS[0]] * 3 + [PROMPTS[1]] * 3, [PROMPTS[2]] * 3]


def test_the_ledger_counts_every_draw() -> None:
    ledger, one_by_one = Ledger(), Ledger()
    best_of(4, shortness, ledger=ledger)
    for number in range(4):
        draws(number, one_by_one)
    assert ledger.generated_tokens == one_by_one.generated_tokens > 0
    # A prompt is fed once for all of its draws.
    assert one_by_one.lm_forward_tokens - ledger.lm_forward_tokens == 3 * sum(map(len, prompt_ids()))
    assert ledger.reward_calls == 12 and ledger.seconds["reward"] > 0


def test_the_bound() -> None:
    """n = 2: log 2 − 1/2 = 0.193147; n = 1: nothing. It holds for a fair coin whose head is preferred: best of 2 gives heads with
    3/4, whose KL is 3/4·log(3/2) + 1/4·log(1/2) = 0.130812."""
    assert kl_bound(1) == 0.0
    assert kl_bound(2) == pytest.approx(0.193147, abs=1e-6)
    exact = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    assert 0 < exact < kl_bound(2)


def test_evaluate_reports_the_bound_and_says_that_it_is_one(tmp_path: Path) -> None:
    metrics = evaluated(
        base(),
        rows(),
        indifferent,
        best_of_n=4,
        selection_reward=["short=" + __file__ + ":shortness"],
        num_samples=2,
        max_new_tokens=8,
        output_dir=tmp_path,
    )
    assert metrics["kl_per_sequence"]["mean"] == pytest.approx(math.log(4) - 0.75)
    assert metrics["kl_restriction"] is None and metrics["trainable_parameters"] == 0
    # What is measured is 4 draws and their scores a response; what is kept is one of them.
    decoding = metrics["decoding"]
    assert decoding["reward_calls"] == 4
    assert 4 <= decoding["generated_tokens"] <= 4 * 8 and decoding["generated_tokens"] > metrics["mean_length"]["mean"]
    settings = metrics["settings"]
    assert settings["policy"] == "best_of_n" and settings["best_of_n"] == 4 and settings["kl_is_bound"] is True
    assert settings["selection_reward"] == ["short=" + __file__ + ":shortness"]
    assert metrics["reward"]["n"] == 6
    costs = json.loads((tmp_path / "costs.json").read_text())
    assert costs["reward_calls"] == 6 * 4 + 6 + 6  # choosing, measuring the policy, measuring the base


def test_samples_are_paired_with_the_bases() -> None:
    """Where the selection has no preference, policy and base are the same, for each of several samples; so they are with n = 1."""
    for n, selection in ((3, indifferent), (1, shortness)):
        metrics = evaluated(
            base(),
            rows(),
            shortness,
            best_of_n=n,
            selection_reward=selection,
            num_samples=2,
            max_new_tokens=8,
        )
        plain = evaluated(base(), rows(), shortness, num_samples=2, max_new_tokens=8)
        assert metrics["reward"] == metrics["base_reward"] == plain["reward"]
        assert metrics["perplexity_base"] == plain["perplexity_base"]
        assert plain["settings"]["kl_is_bound"] is False
    assert metrics["kl_per_sequence"]["mean"] == 0.0


@pytest.mark.slow
def test_results_do_not_depend_on_the_batch() -> None:
    first, second = (
        evaluated(
            base(),
            rows(),
            shortness,
            best_of_n=3,
            selection_reward=shortness,
            num_samples=2,
            max_new_tokens=8,
            batch_size=size,
        )
        for size in (1, 64)
    )
    assert first["reward"] == second["reward"] and first["distinct_2"] == second["distinct_2"]


@pytest.mark.slow
def test_best_of_eight_by_gold_is_better_gold() -> None:
    """The whole interval of the gain is above 0; a selection without a preference gains exactly nothing (see the pairing)."""
    lines = (Path(sandbox.prompts) / "test.jsonl").read_text().splitlines()[:24]
    metrics = evaluated(
        base(),
        Dataset.from_list([{"prompt": json.loads(line)["prompt"]} for line in lines]),
        sandbox.gold,
        best_of_n=8,
        selection_reward=sandbox.gold,
        max_new_tokens=32,
    )
    assert metrics["reward_difference"]["ci_low"] > 0


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"best_of_n": 2}, "best_of_n needs a selection_reward"),
        ({"selection_reward": shortness}, "selection_reward chooses among the draws of best_of_n"),
        ({"best_of_n": 0, "selection_reward": shortness}, "best_of_n is 0; it must be at least 1"),
        ({"best_of_n": 2, "selection_reward": shortness, "do_sample": False}, "cannot decode greedily"),
        ({"best_of_n": 2, "selection_reward": "./nowhere"}, "no reward at"),
    ],
)
def test_what_it_refuses(arguments: dict[str, Any], sentence: str) -> None:
    with pytest.raises(FrugalignError, match=sentence):
        evaluated(base(), rows(), shortness, max_new_tokens=4, **arguments)
