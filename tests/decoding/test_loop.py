"""The decoding loop: the same completion in every batch, ends, states, counts; against `generate` and naive loops."""

from functools import cache
from typing import Any

import pytest
import torch
from transformers import (
    AutoTokenizer,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    Lfm2Config,
    Lfm2ForCausalLM,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from frugalign import sandbox
from frugalign.base.errors import FrugalignError
from frugalign.base.ledger import Ledger
from frugalign.decoding import SamplingParams, Step, generate, row_keys
from frugalign.decoding.loop import LoopOptions, common_prefix
from frugalign.engines.transformers import TransformersEngine, embedding_rows
from frugalign.proxy.guide import ProxyGuide
from frugalign.proxy.network import new_proxy

END = 3


@cache
def base() -> tuple[Any, Any]:
    """The sandbox's model in float32."""
    tokenizer = AutoTokenizer.from_pretrained(sandbox.model, padding_side="left")
    model = LlamaForCausalLM.from_pretrained(sandbox.model, dtype=torch.float32)
    return model.eval().requires_grad_(False), tokenizer


@cache
def prompts(n: int = 64) -> list[list[int]]:
    """Prompts of 4 to 19 tokens."""
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(4, 200, (4 + row % 16,), generator=generator).tolist() for row in range(n)]


def guide(objective: str = "marginal", features: str = "embedding") -> Any:
    """A proxy whose weights do something."""
    model, _ = base()
    proxy = new_proxy(
        model, {"objective": objective, "candidate_features": features, "p_t": 0.001, "max_candidates": 8}
    )
    with torch.no_grad():
        for number, parameter in enumerate(proxy.parameters()):
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number)))
    return ProxyGuide.build([proxy], embedding_rows(model))


PARAMS = SamplingParams(max_new_tokens=24)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("objective", "features"),
    [
        (None, ""),
        ("marginal", "embedding"),
        ("sequential", "embedding"),
        ("sequential_integrated", "embedding"),
        ("marginal", "lookahead"),
    ],
)
def test_completions_do_not_depend_on_the_batch(objective: str | None, features: str) -> None:
    """fp32, 64 prompts of different lengths: equal at batch 1, 7 and 64, and so are both KLs to rounding."""
    model, tokenizer = base()
    proxy = guide(objective, features) if objective else None
    found = [
        generate(
            TransformersEngine(model, tokenizer), prompts(), PARAMS, guide=proxy, options=LoopOptions(batch_size=size)
        )
        for size in (64, 7, 1)
    ]
    for other in found[1:]:
        assert other.completion_ids == found[0].completion_ids
        assert other.ended == found[0].ended
        for name in ("kl_restriction", "kl_choice"):
            assert torch.allclose(getattr(other, name), getattr(found[0], name), atol=1e-4)
    lengths = {len(ids) for ids in found[0].completion_ids}
    assert len(lengths) > 5, "rows must end at different times, or nothing leaves the batch"


@pytest.mark.slow
def test_a_completion_depends_on_its_key_alone() -> None:
    """The same prompt under the same key, among other neighbours and in another place."""
    model, tokenizer = base()
    keys = row_keys(0, 0, range(64), [0] * 64)
    whole = generate(TransformersEngine(model, tokenizer), prompts(), PARAMS, keys=keys)
    chosen = [40, 3, 17]
    part = generate(TransformersEngine(model, tokenizer), [prompts()[row] for row in chosen], PARAMS, keys=keys[chosen])
    assert part.completion_ids == [whole.completion_ids[row] for row in chosen]
    other = generate(TransformersEngine(model, tokenizer), prompts(), PARAMS, keys=row_keys(1, 0, range(64), [0] * 64))
    assert sum(a != b for a, b in zip(other.completion_ids, whole.completion_ids, strict=True)) > 32


@pytest.mark.slow
def test_greedy_equals_generate_row_by_row() -> None:
    model, tokenizer = base()
    found = generate(
        TransformersEngine(model, tokenizer), prompts(), SamplingParams(max_new_tokens=16, do_sample=False)
    )
    assert found.kl_choice is None and found.kl_restriction is None
    for ids, mine in zip(prompts()[:12], found.completion_ids, strict=False):
        theirs = model.generate(torch.tensor([ids]), do_sample=False, max_new_tokens=16)[0, len(ids) :].tolist()
        assert mine == theirs


@pytest.mark.slow
def test_every_end_token_of_the_generation_config_ends_a_row() -> None:
    """With a second end token that the model likes, rows end there too, and nothing follows an end."""
    model, tokenizer = base()
    before = generate(TransformersEngine(model, tokenizer), prompts(), PARAMS)
    common = torch.tensor([ids[2] for ids in before.completion_ids if len(ids) > 4]).mode().values.item()
    saved = model.generation_config.eos_token_id
    try:
        model.generation_config.eos_token_id = [END, common]
        after = generate(TransformersEngine(model, tokenizer), prompts(), PARAMS)
    finally:
        model.generation_config.eos_token_id = saved
    assert any(ids[-1] == common for ids in after.completion_ids)
    for old, new, ended in zip(before.completion_ids, after.completion_ids, after.ended, strict=True):
        stops = [place for place, token in enumerate(old) if token in (END, common)]
        assert new == (old[: stops[0] + 1] if stops else old)
        assert ended == bool(stops)


def test_a_row_that_is_cut_has_not_ended() -> None:
    model, tokenizer = base()
    found = generate(TransformersEngine(model, tokenizer), prompts(), SamplingParams(max_new_tokens=2))
    assert all(len(ids) == 2 or ended for ids, ended in zip(found.completion_ids, found.ended, strict=True))
    assert not all(found.ended)


@pytest.mark.parametrize("layers", [(1, 2), (0,)])
def test_endpoint_states_are_those_of_a_full_forward_pass(layers: tuple[int, ...]) -> None:
    """`hidden_states[l]` at the completion's last token, which decoding itself never feeds."""
    model, tokenizer = base()
    found = generate(
        TransformersEngine(model, tokenizer),
        prompts(16),
        PARAMS,
        options=LoopOptions(batch_size=8, state_layers=layers),
    )
    assert found.states is not None and found.states.shape == (16, len(layers), model.config.hidden_size)
    assert len(set(found.ended)) >= 1
    for row, (prompt, completion) in enumerate(zip(prompts(16), found.completion_ids, strict=True)):
        states = model(torch.tensor([prompt + completion]), output_hidden_states=True).hidden_states
        for place, layer in enumerate(layers):
            torch.testing.assert_close(found.states[row, place], states[layer][0, -1], atol=2e-4, rtol=1e-4)


@pytest.mark.slow
def test_asking_for_states_changes_no_completion() -> None:
    model, tokenizer = base()
    plain = generate(TransformersEngine(model, tokenizer), prompts(16), PARAMS, options=LoopOptions(batch_size=8))
    assert (
        generate(
            TransformersEngine(model, tokenizer),
            prompts(16),
            PARAMS,
            options=LoopOptions(batch_size=8, state_layers=(1,)),
        ).completion_ids
        == plain.completion_ids
    )


@pytest.mark.slow
def test_the_observer_sees_every_live_row_once_a_position() -> None:
    model, tokenizer = base()
    seen: dict[int, list[int]] = {}

    def watch(step: Step) -> None:
        assert len(step.rows) == len(step.hidden) == len(step.emission.token)
        for row, token in zip(step.rows.tolist(), step.emission.token.tolist(), strict=True):
            assert len(seen.setdefault(row, [])) == step.position
            seen[row].append(token)

    found = generate(
        TransformersEngine(model, tokenizer), prompts(), PARAMS, options=LoopOptions(batch_size=16, observer=watch)
    )
    assert [seen[row] for row in range(64)] == found.completion_ids


@pytest.mark.slow
def test_the_ledger_counts_real_positions_only() -> None:
    """Every prompt token and every generated token but the last is fed once; padding and ended rows are not counted."""
    model, tokenizer = base()
    ledger = Ledger()
    found = generate(
        TransformersEngine(model, tokenizer), prompts(), PARAMS, options=LoopOptions(batch_size=64), ledger=ledger
    )
    generated = sum(map(len, found.completion_ids))
    assert ledger.generated_tokens == generated
    least = sum(map(len, prompts())) + generated - len(prompts())
    # Rows that have ended stay in the batch until a quarter has: their steps are real work and are counted.
    assert least <= ledger.lm_forward_tokens <= least + 0.34 * generated
    alone = Ledger()
    found = generate(
        TransformersEngine(model, tokenizer), prompts(), PARAMS, options=LoopOptions(batch_size=1), ledger=alone
    )
    assert alone.lm_forward_tokens == sum(map(len, prompts())) + sum(map(len, found.completion_ids)) - len(prompts())


def test_the_kl_of_a_proxy_is_that_of_the_full_vocabulary() -> None:
    """Restriction + choice = Σ_t KL(π_t ‖ p_t) computed from the model's own logits along the completion."""
    model, tokenizer = base()
    proxy = guide()
    found = generate(TransformersEngine(model, tokenizer), prompts(6), PARAMS, guide=proxy)
    assert found.kl_restriction is not None and found.kl_choice is not None
    for row, (prompt, completion) in enumerate(zip(prompts(6), found.completion_ids, strict=True)):
        ids = torch.tensor([prompt + completion[:-1]])
        output = model(ids, output_hidden_states=True)
        logits, hidden = output.logits[0, len(prompt) - 1 :], output.hidden_states[-1][0, len(prompt) - 1 :]
        chosen, log_pi = proxy.log_probs(hidden, logits)
        log_p = logits.log_softmax(-1).gather(-1, chosen)
        terms = torch.where(log_pi.isfinite(), log_pi.exp() * (log_pi - log_p), torch.zeros_like(log_p))
        assert float(terms.sum()) == pytest.approx(float(found.kl_restriction[row] + found.kl_choice[row]), abs=1e-4)


def test_a_model_without_position_ids_in_its_config_and_learned_positions() -> None:
    """GPT-2 adds learned positions: left padding must not move them."""
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=200, n_embd=32, n_layer=2, n_head=4, n_positions=64)).eval()
    model.generation_config.eos_token_id = None
    _, tokenizer = base()
    few = [ids[:n] for ids, n in zip(prompts(8), (2, 5, 9, 3, 4, 4, 7, 8), strict=True)]
    few = [[token % 200 for token in ids] for ids in few]
    found = [
        generate(
            TransformersEngine(model, tokenizer),
            few,
            SamplingParams(max_new_tokens=8),
            options=LoopOptions(batch_size=size),
        )
        for size in (8, 1)
    ]
    assert found[0].completion_ids == found[1].completion_ids


def test_no_prompts_and_an_empty_prompt() -> None:
    model, tokenizer = base()
    assert generate(TransformersEngine(model, tokenizer), [], PARAMS).completion_ids == []
    with pytest.raises(FrugalignError, match=r"Prompt 1 is empty after tokenisation\."):
        generate(TransformersEngine(model, tokenizer), [[5], []], PARAMS)


# -- a prefix that all prompts share --------------------------------------------------------------------------------------


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
    assert common_prefix(prefixed()) == PREFIX
    params = SamplingParams(max_new_tokens=10, do_sample=do_sample)
    whole = generate(TransformersEngine(model, tokenizer), prefixed(), params, options=LoopOptions(batch_size=1))
    assert len({tuple(ids) for ids in whole.completion_ids}) > 12, "the prompts must matter"
    for size in (1, 7, 24):
        found = generate(
            TransformersEngine(model, tokenizer),
            prefixed(),
            params,
            options=LoopOptions(batch_size=size, shared_prefix=PREFIX),
        )
        assert found.completion_ids == whole.completion_ids and found.ended == whole.ended
    part = generate(
        TransformersEngine(model, tokenizer), prefixed(), params, options=LoopOptions(batch_size=7, shared_prefix=4)
    )
    assert part.completion_ids == whole.completion_ids


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
