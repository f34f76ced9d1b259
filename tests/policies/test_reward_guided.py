"""ARGS's rule: against a loop of one prefix and one reward call at a time, inside `generate`, and by hand where the numbers are small."""

import math
from functools import cache
from typing import Any

import pytest
import torch
from datasets import Dataset
from tests.evaluation.evaluated import evaluated
from torch import Tensor
from transformers import LogitsProcessorList

from frugalign import sandbox
from frugalign.base.errors import FrugalignError
from frugalign.base.ledger import Ledger
from frugalign.decoding import Generation, Noise, SamplingParams, generate, row_keys
from frugalign.decoding.chooser import STREAM_EMIT
from frugalign.decoding.loop import LoopOptions
from frugalign.engines.loading import LoadedModel, load_model
from frugalign.engines.transformers import TransformersEngine
from frugalign.policies.prompt_rows import PromptRows
from frugalign.policies.reward_guided import RewardGuidance, RewardGuidedLogitsProcessor
from frugalign.rewards import load_rewards

PROMPTS = [
    "i want a balm for my knee",
    "sell me a curse",
    "good morning . a tea for my cough please , it must be strong .",
    "here is silver . mix me a draught to turn the nightmares away from my rival",
    "a salve",
    "bless this shop . i need something",
]
END = 3
NEW_TOKENS = 22


def uneven(prompts: list[str], completions: list[str], **_: Any) -> list[float]:
    """Depends on the prompt and on the whole text, changes at every word, and is exact in floating point."""
    texts = [prompt + completion for prompt, completion in zip(prompts, completions, strict=True)]
    return [sum(ord(letter) * (place % 5 + 1) for place, letter in enumerate(text)) % 64 / 32 for text in texts]


def silver(completions: list[str], **_: Any) -> list[float]:
    """Counts one word, so that one more is better."""
    return [float(text.split().count("silver")) for text in completions]


def ended(completion_ids: list[list[int]], **_: Any) -> list[float]:
    """Likes an end, which the text does not show."""
    return [float(ids[-1] == END) for ids in completion_ids]


def never(completions: list[str], **_: Any) -> list[None]:
    return [None] * len(completions)


@cache
def base() -> LoadedModel:
    return load_model(sandbox.model)


@cache
def prompt_ids() -> list[list[int]]:
    """As the chat template writes them: 10 to 21 tokens."""
    messages = [[{"role": "user", "content": prompt}] for prompt in PROMPTS]
    texts = [
        base().tokenizer.apply_chat_template(each, tokenize=False, add_generation_prompt=True) for each in messages
    ]
    return [list(base().tokenizer(text, add_special_tokens=False)["input_ids"]) for text in texts]


def keys() -> Tensor:
    return row_keys(0, 0, range(len(PROMPTS)), [0] * len(PROMPTS))


def guided(
    reward: Any,
    *,
    weight: float = 1.0,
    top_k: int = 10,
    temperature: float = 1.0,
    do_sample: bool = True,
    batch_size: int = 64,
    new_tokens: int = NEW_TOKENS,
    ledger: Ledger | None = None,
) -> Generation:
    guidance = RewardGuidance(load_rewards(reward), weight, top_k)
    ledger = ledger or Ledger()
    return generate(
        TransformersEngine(base().model, base().tokenizer),
        prompt_ids(),
        SamplingParams(new_tokens, temperature, do_sample),
        keys=keys(),
        guide=guidance.guide(base(), PromptRows(PROMPTS), temperature, keys(), ledger),
        options=LoopOptions(batch_size=batch_size),
        ledger=ledger,
    )


def naive(
    reward: Any, weight: float, top_k: int, temperature: float, do_sample: bool
) -> tuple[list[list[int]], list[float]]:
    """The rule as it is written down: no cache, no batch, one reward call a candidate. Ids, and the KL summed over the vocabulary."""
    completions, divergences = [], []
    for row, (prompt, ids) in enumerate(zip(PROMPTS, prompt_ids(), strict=True)):
        written: list[int] = []
        kl = 0.0
        for position in range(NEW_TOKENS):
            with torch.no_grad():
                logits = base().model(torch.tensor([ids + written])).logits[0, -1].double()
            log_p = logits.log_softmax(-1)  # the KL is to the base at temperature 1
            scores = torch.full_like(logits, -math.inf)
            for token in logits.topk(top_k).indices.tolist():
                text = base().tokenizer.decode([*written, token], skip_special_tokens=True)
                value = reward(prompts=[prompt], completions=[text], completion_ids=[[*written, token]])[0]
                scores[token] = logits[token] + weight * (value or 0.0)
            log_pi = (scores / temperature).log_softmax(-1)
            kl += sum(math.exp(a) * (a - b) for a, b in zip(log_pi.tolist(), log_p.tolist(), strict=True) if a > -1e30)
            gumbel = Noise(keys()[row : row + 1], position).gumbel(STREAM_EMIT, torch.arange(len(logits))[None])[0]
            token = int((log_pi + gumbel if do_sample else scores).argmax())
            written.append(token)
            if token == END:
                break
        completions.append(written)
        divergences.append(kl)
    return completions, divergences


@pytest.mark.slow
@pytest.mark.parametrize(("temperature", "do_sample"), [(1.0, True), (0.6, True), (1.0, False)])
def test_it_equals_the_rule_as_it_is_written_down(temperature: float, do_sample: bool) -> None:
    expected, kl = naive(uneven, 1.5, 6, temperature, do_sample)
    found = guided(uneven, weight=1.5, top_k=6, temperature=temperature, do_sample=do_sample)
    assert found.completion_ids == expected
    assert found.ended == [ids[-1] == END for ids in expected]
    assert len({len(ids) for ids in expected}) > 1, "rows must end at different times"
    if do_sample:
        assert found.kl_temperature is not None and found.kl_restriction is not None and found.kl_choice is not None
        whole = found.kl_temperature + found.kl_restriction + found.kl_choice
        assert whole.tolist() == pytest.approx(kl, abs=1e-4)
        assert bool((found.kl_temperature == 0).all()) == (temperature == 1.0)
    else:
        assert found.kl_temperature is found.kl_restriction is found.kl_choice is None


@pytest.mark.slow
@pytest.mark.parametrize(("reward", "weight"), [(uneven, 0.0), (never, 5.0)])
def test_without_weight_it_is_top_k_sampling_of_the_base(reward: Any, weight: float) -> None:
    """A weight of 0, or a reward that never applies: the naive rule with a reward of nothing, whose KL is all restriction."""
    expected, kl = naive(never, 0.0, 4, 1.0, True)
    found = guided(reward, weight=weight, top_k=4)
    assert found.completion_ids == expected
    assert found.kl_restriction is not None and found.kl_choice is not None
    assert found.kl_restriction.tolist() == pytest.approx(kl, abs=1e-4) and min(kl) > 0
    assert float(found.kl_choice.abs().max()) < 1e-5
    assert found.completion_ids != guided(uneven, top_k=4).completion_ids


def test_without_weight_or_restriction_it_is_the_base_on_the_same_noise() -> None:
    """With every token a candidate it takes what the base takes, greedy and sampled. (At T = 0.3: the base draws what lies beyond its 64
    likeliest tokens by other noise.)"""
    vocabulary = base().model.config.vocab_size
    for do_sample in (True, False):
        params = SamplingParams(8, 0.3, do_sample)
        plain = generate(TransformersEngine(base().model, base().tokenizer), prompt_ids(), params, keys=keys())
        found = guided(uneven, weight=0.0, top_k=vocabulary + 1, temperature=0.3, do_sample=do_sample, new_tokens=8)
        assert found.completion_ids == plain.completion_ids
        if found.kl_restriction is not None:
            assert float(found.kl_restriction.max()) < 1e-4


@pytest.mark.parametrize("do_sample", [True, False])
@pytest.mark.slow
def test_completions_do_not_depend_on_the_batch(do_sample: bool) -> None:
    whole = guided(uneven, do_sample=do_sample)
    for size in (1, 4):
        part = guided(uneven, do_sample=do_sample, batch_size=size)
        assert part.completion_ids == whole.completion_ids
        if do_sample:
            assert part.kl_choice is not None and whole.kl_choice is not None
            assert torch.allclose(part.kl_choice, whole.kl_choice, atol=1e-4)


def test_a_guide_may_run_twice() -> None:
    """What it has written starts anew at position 0."""
    guidance, ledger = RewardGuidance(load_rewards(uneven)), Ledger()
    guide = guidance.guide(base(), PromptRows(PROMPTS), 1.0, keys(), ledger)
    params = SamplingParams(NEW_TOKENS)
    first, second = (
        generate(
            TransformersEngine(base().model, base().tokenizer), prompt_ids(), params, keys=keys(), guide=guide
        ).completion_ids
        for _ in range(2)
    )
    assert first == second == guided(uneven).completion_ids


@pytest.mark.parametrize("options", [{"do_sample": False}, {"temperature": 1e-6, "num_return_sequences": 2}])
def test_the_processor_in_generate_gives_the_same(options: dict[str, Any]) -> None:
    """The evaluation's greedy tokens, also where two sequences a prompt are sampled at a temperature that leaves no chance."""
    inputs = base().tokenizer.pad({"input_ids": prompt_ids()}, padding_side="left", return_tensors="pt")
    width, ledger = inputs["input_ids"].shape[1], Ledger()
    processor = RewardGuidedLogitsProcessor(
        base().tokenizer, PROMPTS, uneven, prompt_length=width, weight=1.5, top_k=6, ledger=ledger
    )
    model: Any = base().model
    processors = LogitsProcessorList([processor])
    given = {"do_sample": True} | options
    found = model.generate(**inputs, logits_processor=processors, max_new_tokens=NEW_TOKENS, **given)[:, width:]
    greedy = guided(uneven, weight=1.5, top_k=6, do_sample=False).completion_ids
    expected = [ids for ids in greedy for _ in range(options.get("num_return_sequences", 1))]
    assert base().tokenizer.batch_decode(found, skip_special_tokens=True) == base().tokenizer.batch_decode(
        expected, skip_special_tokens=True
    )
    assert ledger.reward_calls == 6 * sum(map(len, expected))


def test_the_processor_wants_the_prompts_of_the_batch() -> None:
    processor = RewardGuidedLogitsProcessor(base().tokenizer, PROMPTS[:2], uneven, prompt_length=1)
    with pytest.raises(FrugalignError, match="3 rows are generated, but the reward has 2 prompts"):
        processor(torch.ones(3, 1, dtype=torch.long), torch.zeros(3, 9))


def test_the_kl_by_hand() -> None:
    """p = (1/2, 1/4, 1/8, 1/8), k = 2, a reward of log 2 for token 1 and nothing for token 0: π = (1/2, 1/2, 0, 0).

    −log p(C) = log 4/3 = 0.287682; KL(π ‖ p | C) = ½ log(3/4) + ½ log(3/2) = 0.058892; together ½ log 2, which is KL(π ‖ p)."""

    def second(completion_ids: list[list[int]], **_: Any) -> list[float]:
        return [math.log(2) if ids == [1] else 0.0 for ids in completion_ids]

    guidance = RewardGuidance(load_rewards(second), weight=1.0, top_k=2)
    guide = guidance.guide(base(), PromptRows(["p"]), 1.0, keys()[:1], Ledger())
    logits = torch.tensor([[4.0, 2.0, 1.0, 1.0]]).log()
    emission = guide.emit(torch.empty(1, 0), logits, Noise(keys()[:1], 0))
    assert emission.kl_restriction is not None and emission.kl_choice is not None
    assert float(emission.kl_restriction) == pytest.approx(0.287682, abs=1e-6)
    assert float(emission.kl_choice) == pytest.approx(0.058892, abs=1e-6)
    assert float(emission.kl_restriction + emission.kl_choice) == pytest.approx(0.5 * math.log(2), abs=1e-6)
    assert int(emission.token) in (0, 1)
    assert [entry.acceptance for entry in guide.trace(emission, Noise(keys()[:1], 0))] == [None]


def test_a_reward_that_likes_a_word_gets_it() -> None:
    def count(generation: Generation) -> int:
        texts = base().tokenizer.batch_decode(generation.completion_ids, skip_special_tokens=True)
        return sum(text.split().count("silver") for text in texts)

    vocabulary = base().model.config.vocab_size
    word = base().tokenizer.convert_tokens_to_ids("silver")
    everywhere = guided(silver, weight=1000.0, top_k=vocabulary, do_sample=False, new_tokens=5)
    assert everywhere.completion_ids == [[word] * 5] * len(PROMPTS)
    # Among ten tokens it can only be taken where it is likely.
    assert count(guided(silver, weight=1000.0)) > count(guided(silver, weight=0.0))


def test_several_rewards_are_summed() -> None:
    def double(**arguments: Any) -> list[float]:
        return [2 * value for value in uneven(**arguments)]

    assert guided([uneven, double, never]).completion_ids == guided(uneven, weight=3.0).completion_ids


def test_an_end_is_a_candidate_like_others_and_nothing_follows_it() -> None:
    """A reward that reads the ids ends every row at once; rows that have ended early are not scored while the others go on."""
    vocabulary = base().model.config.vocab_size
    found = guided(ended, weight=1000.0, top_k=vocabulary)
    assert found.completion_ids == [[END]] * len(PROMPTS) and found.ended == [True] * len(PROMPTS)
    ledger = Ledger()
    lengths = {len(ids) for ids in guided(uneven, top_k=6, ledger=ledger).completion_ids}
    assert len(lengths) > 1
    assert ledger.reward_calls == 6 * ledger.generated_tokens and ledger.seconds["reward"] > 0


def test_columns_and_messages_reach_the_reward() -> None:
    seen: list[Any] = []

    def reads(prompts: list[Any], completions: list[Any], wanted: list[str], **_: Any) -> list[float]:
        seen.append((prompts[0], completions[0]))
        return [
            100.0 * completion[0]["content"].endswith(word)
            for completion, word in zip(completions, wanted, strict=True)
        ]

    messages = [[{"role": "user", "content": "sell me a curse"}]]
    metrics = evaluated(
        base(),
        Dataset.from_dict({"prompt": messages, "wanted": ["silver"]}),
        lambda completions, **_: [float(completions[0][0]["content"].startswith("silver"))],
        guiding_reward=reads,
        guiding_top_k=base().model.config.vocab_size,
        max_new_tokens=3,
    )
    assert metrics["reward"]["mean"] == 1.0 and metrics["base_reward"]["mean"] == 0.0
    assert seen[0][0] == messages[0] and seen[0][1][0]["role"] == "assistant"


def rows() -> Dataset:
    return Dataset.from_dict({"prompt": PROMPTS})


def test_evaluate_takes_it_as_a_policy() -> None:
    both = [uneven, silver]
    first, second = (
        evaluated(
            base(),
            rows(),
            both,
            guiding_reward=[uneven],
            guiding_weight=2.0,
            guiding_top_k=5,
            num_samples=2,
            max_new_tokens=8,
            batch_size=n,
        )
        for n in (3, 64)
    )
    assert first["reward"] == second["reward"]
    assert first["reward"]["n"] == 12 and first["reward_difference"]["mean"] > 0
    assert 0 < first["kl_restriction"]["mean"] < first["kl_per_sequence"]["mean"]
    settings = first["settings"]
    assert settings["policy"] == "reward_guided" and settings["guiding_reward"] == ["uneven"]
    assert (settings["guiding_weight"], settings["guiding_top_k"], settings["kl_is_bound"]) == (2.0, 5, False)
    assert settings["best_of_n"] is settings["selection_reward"] is None
    greedy = evaluated(base(), rows(), both, guiding_reward=[uneven], do_sample=False, max_new_tokens=4)
    assert greedy["kl_per_sequence"] is greedy["kl_restriction"] is None


@pytest.mark.slow
def test_a_reward_model_of_whole_replies_steers_by_what_it_says_of_parts() -> None:
    lines = [{"prompt": prompt} for prompt in PROMPTS[:4]]
    metrics = evaluated(
        base(),
        Dataset.from_list(lines),
        sandbox.learned,
        guiding_reward=sandbox.learned,
        guiding_top_k=4,
        num_samples=4,
        max_new_tokens=24,
    )
    assert metrics["reward_difference"]["mean"] > 0


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            {"guiding_reward": uneven, "best_of_n": 2, "selection_reward": uneven},
            "only one of best_of_n and guiding_reward",
        ),
        ({"guiding_reward": uneven, "proxy": "a"}, "only one of proxy and guiding_reward"),
        ({"guiding_reward": uneven, "guiding_top_k": 0}, "guiding_top_k is 0; it must be at least 1"),
        ({"guiding_reward": uneven, "guiding_weight": math.inf}, "guiding_weight is inf; it must be a finite number"),
        ({"guiding_weight": 2.0}, "guiding_weight and guiding_top_k belong to a guiding_reward"),
        ({"guiding_reward": lambda **_: [1.0]}, "returned 1 values for 60 completions"),
    ],
)
def test_what_it_refuses(arguments: dict[str, Any], sentence: str) -> None:
    with pytest.raises(FrugalignError, match=sentence):
        evaluated(base(), rows(), uneven, max_new_tokens=2, **arguments)


def test_two_rows_with_one_key_are_refused() -> None:
    guidance = RewardGuidance(load_rewards(uneven))
    with pytest.raises(FrugalignError, match="Two rows have the same noise key"):
        guidance.guide(base(), PromptRows(["a", "b"]), 1.0, row_keys(0, 0, [0, 0], [0, 0]), Ledger())
