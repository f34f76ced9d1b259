"""The decoding loop: the same completion in every batch, ends, states, counts; against `generate` and naive loops."""

import pytest
import torch
from tests.decoding.small_loop import END, PARAMS, base, guide, prompts
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
)

from frugalign.base.errors import FrugalignError
from frugalign.base.ledger import Ledger
from frugalign.decoding import SamplingParams, Step, generate, row_keys
from frugalign.decoding.loop import LoopOptions
from frugalign.engines.transformers import TransformersEngine


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
    """fp32, 20 prompts of different lengths: equal at batch 1, 7 and 20, and so are both KLs to rounding."""
    model, tokenizer = base()
    proxy = guide(objective, features) if objective else None
    found = [
        generate(
            TransformersEngine(model, tokenizer), prompts(20), PARAMS, guide=proxy, options=LoopOptions(batch_size=size)
        )
        for size in (20, 7, 1)
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
    keys = row_keys(0, 0, range(32), [0] * 32)
    whole = generate(TransformersEngine(model, tokenizer), prompts(), PARAMS, keys=keys)
    chosen = [30, 3, 17]
    part = generate(TransformersEngine(model, tokenizer), [prompts()[row] for row in chosen], PARAMS, keys=keys[chosen])
    assert part.completion_ids == [whole.completion_ids[row] for row in chosen]
    other = generate(TransformersEngine(model, tokenizer), prompts(), PARAMS, keys=row_keys(1, 0, range(32), [0] * 32))
    assert sum(a != b for a, b in zip(other.completion_ids, whole.completion_ids, strict=True)) > 16


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
    """`hidden_states[l]` at the completion's last sentence end, or at its last token, which decoding itself never feeds."""
    model, tokenizer = base()
    engine = TransformersEngine(model, tokenizer)
    found = generate(engine, prompts(16), PARAMS, options=LoopOptions(batch_size=8, state_layers=layers))
    assert found.states is not None and found.states.shape == (16, len(layers), model.config.hidden_size)
    assert len(set(found.ended)) >= 1
    for row, (prompt, completion) in enumerate(zip(prompts(16), found.completion_ids, strict=True)):
        read = engine.sentence_ends.read(prompt, completion)
        states = model(torch.tensor([read]), output_hidden_states=True).hidden_states
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
    assert [seen[row] for row in range(32)] == found.completion_ids


@pytest.mark.slow
def test_the_ledger_counts_real_positions_only() -> None:
    """Every prompt token and every generated token but the last is fed once; padding and ended rows are not counted."""
    model, tokenizer = base()
    ledger = Ledger()
    found = generate(
        TransformersEngine(model, tokenizer), prompts(), PARAMS, options=LoopOptions(batch_size=32), ledger=ledger
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
        log_pi, log_p = proxy.log_probs(hidden, logits), logits.log_softmax(-1)
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
