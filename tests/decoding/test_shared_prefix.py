"""A prefix that all prompts share is fed once, and changes nothing but the count."""

from functools import cache
from typing import Any

import pytest
import torch
from tests.decoding.small_loop import PARAMS, base, guide, prompts
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    Lfm2Config,
    Lfm2ForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from frugalign.base.ledger import Ledger
from frugalign.decoding import SamplingParams, Step, generate
from frugalign.decoding.loop import LoopOptions, common_prefix
from frugalign.engines.transformers import TransformersEngine


@pytest.mark.parametrize(
    ("prompts", "shared"),
    [
        ([], 0),
        ([[7]], 0),
        ([[7, 8, 9]], 2),
        ([[7, 8, 9], [7, 8, 9]], 2),
        ([[7, 8, 9], [7, 8, 4, 9], [7, 8]], 1),
        ([[7, 8, 9], [7, 8, 4, 9], [7, 8, 4]], 2),
        ([[7, 8], [7, 8, 9], [7]], 0),
        ([[7, 8], [8, 8]], 0),
        ([(9, 8, 3, 1), (9, 8, 5, 1), (9, 8, 4, 1)], 2),
        # 10 comes after 9, though not as a word: the least and the greatest are by number.
        ([[1, 10, 5], [1, 9, 5], [1, 10, 6]], 1),
    ],
)
def test_the_common_prefix_leaves_every_prompt_a_token(prompts: list[list[int]], shared: int) -> None:
    """So that each has a position whose logits its first token comes from: none can be wholly the prefix."""
    assert common_prefix(prompts) == shared


def test_the_common_prefix_is_that_of_a_naive_loop() -> None:
    generator = torch.Generator().manual_seed(0)
    seen = set()
    for trial in range(300):
        rows = torch.randint(0, 2, (1 + trial % 4, 9), generator=generator).tolist()
        rows = [row[: 1 + int(torch.randint(0, 9, (), generator=generator))] for row in rows]
        shortest, expected = min(map(len, rows)), 0
        while expected < shortest - 1 and len({row[expected] for row in rows}) == 1:
            expected += 1
        assert common_prefix(rows) == expected
        seen.add(expected)
    assert len(seen) > 4


SMALL: dict[str, Any] = {
    "vocab_size": 200,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 96,
    "bos_token_id": 1,
    "eos_token_id": None,
    "pad_token_id": 0,
}


@cache
def small(name: str) -> Any:
    """A tiny model whose distribution is far from flat and depends on all that was read."""
    if name == "llama":
        return base()[0]
    torch.manual_seed(0)
    model: Any
    if name == "gpt2":
        ends: dict[str, Any] = {"bos_token_id": 1, "eos_token_id": None}
        model = GPT2LMHeadModel(GPT2Config(vocab_size=200, n_embd=16, n_layer=2, n_head=2, n_positions=96, **ends))
    elif name == "qwen2":
        model = Qwen2ForCausalLM(Qwen2Config(**SMALL, tie_word_embeddings=False))
    elif name == "mistral-window":
        model = MistralForCausalLM(MistralConfig(**SMALL, sliding_window=6))
    elif name == "mistral-wide":
        model = MistralForCausalLM(MistralConfig(**SMALL, sliding_window=64))
    elif name == "gemma2-window":
        model = Gemma2ForCausalLM(Gemma2Config(**SMALL, head_dim=8, sliding_window=6))
    else:
        model = Lfm2ForCausalLM(Lfm2Config(**SMALL, layer_types=["conv", "full_attention"]))
    with torch.no_grad():
        weight = model.get_output_embeddings().weight
        weight.mul_((0.8 if name == "gpt2" else 2.0) / float(weight.std() * 4.0))
    return model.eval().requires_grad_(False)


PREFIX = 9


@cache
def prefixed(n: int = 24) -> list[list[int]]:
    """The same 9 tokens, then 1 to 12 of each prompt's own; the first prompt has one token beside the prefix."""
    generator = torch.Generator().manual_seed(1)
    common = torch.randint(4, 200, (PREFIX,), generator=generator).tolist()
    own = [torch.randint(4, 200, (1 + 5 * row % 12,), generator=generator).tolist() for row in range(n)]
    return [common + each for each in own]


@pytest.mark.slow
@pytest.mark.parametrize("do_sample", [True, False], ids=["sampled", "greedy"])
@pytest.mark.parametrize(
    "name", ["llama", "gpt2", "qwen2", "mistral-window", "mistral-wide", "gemma2-window", "lfm2-conv"]
)
def test_a_shared_prefix_changes_no_completion(name: str, do_sample: bool) -> None:
    """Positions, masks and the window of attention are those of the whole prompts, at any batch size.

    The padding of a shorter prompt stands between the prefix and the rest: a sliding window would count it, and a convolution read it, so models
    with these are fed the prefix as before.
    """
    model, (_, tokenizer) = small(name), base()
    assert common_prefix(prefixed(12)) == PREFIX
    params = SamplingParams(max_new_tokens=10, do_sample=do_sample)
    whole = generate(TransformersEngine(model, tokenizer), prefixed(12), params, options=LoopOptions(batch_size=1))
    assert len({tuple(ids) for ids in whole.completion_ids}) > 6, "the prompts must matter"
    for size in (1, 5, 12):
        found = generate(
            TransformersEngine(model, tokenizer),
            prefixed(12),
            params,
            options=LoopOptions(batch_size=size, shared_prefix=PREFIX),
        )
        assert found.completion_ids == whole.completion_ids and found.ended == whole.ended
    part = generate(
        TransformersEngine(model, tokenizer), prefixed(12), params, options=LoopOptions(batch_size=5, shared_prefix=4)
    )
    assert part.completion_ids == whole.completion_ids


@pytest.mark.slow
def test_a_shared_prefix_changes_no_state_no_kl_and_nothing_that_is_observed() -> None:
    """With a guide that looks ahead on the cache, which the prefix is a part of."""
    model, tokenizer = base()
    seen: list[dict[tuple[int, int], torch.Tensor]] = [{}, {}]

    def watch(into: dict[tuple[int, int], torch.Tensor]) -> Any:
        def observe(step: Step) -> None:
            into.update(
                {(row, step.position): state for row, state in zip(step.rows.tolist(), step.hidden, strict=True)}
            )

        return observe

    found = [
        generate(
            TransformersEngine(model, tokenizer),
            prefixed(12),
            PARAMS,
            guide=guide("marginal", "lookahead"),
            options=LoopOptions(batch_size=5, state_layers=(1, 2), observer=watch(seen[place]), shared_prefix=shared),
        )
        for place, shared in enumerate((0, PREFIX))
    ]
    assert found[0].completion_ids == found[1].completion_ids and found[0].ended == found[1].ended
    for name in ("kl_restriction", "kl_choice", "states"):
        torch.testing.assert_close(getattr(found[1], name), getattr(found[0], name), atol=2e-4, rtol=1e-4)
    assert seen[0].keys() == seen[1].keys()
    for key, state in seen[0].items():
        torch.testing.assert_close(seen[1][key], state, atol=2e-4, rtol=1e-4)


@pytest.mark.slow
def test_a_shared_prefix_is_fed_and_counted_once() -> None:
    """One prompt a batch: every token of a prompt's own and every generated one but the last, as without it, and the prefix once for all 24."""
    model, tokenizer = base()
    counts = []
    for size, shared in ((1, 0), (1, PREFIX), (24, 0), (24, PREFIX), (7, PREFIX)):
        ledger = Ledger()
        found = generate(
            TransformersEngine(model, tokenizer),
            prefixed(),
            PARAMS,
            options=LoopOptions(batch_size=size, shared_prefix=shared),
            ledger=ledger,
        )
        counts.append(ledger.lm_forward_tokens)
        assert ledger.generated_tokens == sum(map(len, found.completion_ids))
    own = sum(map(len, prefixed())) - 24 * PREFIX
    assert counts[1] == PREFIX + own + ledger.generated_tokens - 24
    # In batches too it is 23 times the prefix that is saved; what ended rows cost is the same.
    assert counts[0] - counts[1] == counts[2] - counts[3] == 23 * PREFIX
    assert counts[4] < counts[0] - 22 * PREFIX + 0.34 * ledger.generated_tokens


@pytest.mark.parametrize(("name", "shares"), [("qwen2", True), ("mistral-wide", True), ("mistral-window", False)])
def test_a_window_of_attention_is_shared_where_all_that_is_fed_fits_into_it(name: str, shares: bool) -> None:
    """21 tokens of the longest prompt and 10 new ones are within 64, not within 6; a prefix that was fed in vain is counted too."""
    model, (_, tokenizer) = small(name), base()
    ledger = Ledger()
    params = SamplingParams(max_new_tokens=10)
    generate(
        TransformersEngine(model, tokenizer),
        prefixed(),
        params,
        options=LoopOptions(shared_prefix=PREFIX),
        ledger=ledger,
    )
    fed = sum(map(len, prefixed())) + 24 * 9  # these models have no end token
    assert ledger.lm_forward_tokens == (fed - 23 * PREFIX if shares else fed + PREFIX)


def test_a_shared_prefix_of_prompts_that_are_all_the_same() -> None:
    """As k responses to one prompt are sampled: all but its last token is the prefix, and nothing is padded."""
    model, tokenizer = base()
    same = [prompts()[9]] * 12
    found = generate(
        TransformersEngine(model, tokenizer), same, PARAMS, options=LoopOptions(shared_prefix=common_prefix(same))
    )
    assert common_prefix(same) == 12 and len({tuple(ids) for ids in found.completion_ids}) > 4
    assert found.completion_ids == generate(TransformersEngine(model, tokenizer), same, PARAMS).completion_ids


def test_a_shared_prefix_of_no_prompts() -> None:
    model, tokenizer = base()
    ledger = Ledger()
    found = generate(
        TransformersEngine(model, tokenizer),
        [],
        PARAMS,
        options=LoopOptions(shared_prefix=common_prefix([])),
        ledger=ledger,
    )
    assert found.completion_ids == [] and ledger.lm_forward_tokens == 0
