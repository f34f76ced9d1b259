"""vLLM as an engine, on a stand-in of its interfaces: the loop's own tokens, however vLLM batches, splits and repeats its work."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.decoding.vllm_stand_in import folder, on_path
from tests.two_layers import two_layers
from torch import Tensor

from frugalign.base.errors import FrugalignError
from frugalign.base.ledger import Ledger
from frugalign.base.quantities import KL_PARTS
from frugalign.decoding.chooser import BaseGuide
from frugalign.decoding.loop import Generation, LoopOptions, SamplingParams, Step, generate
from frugalign.decoding.noise import row_keys
from frugalign.decoding.vllm import VllmEngine, check_settings
from frugalign.engines.loading import load_model
from frugalign.engines.transformers import Forward, TransformersEngine
from frugalign.proxy.guide import ProxyGuide
from frugalign.proxy.network import new_proxy

LENGTHS = [9, 3, 17, 9, 5, 9]
PROMPTS = [[1, *range(20, 19 + length)] for length in LENGTHS]
KEYS = row_keys(3, 1, range(len(LENGTHS)), [0] * len(LENGTHS))
SETTINGS: dict[str, dict[str, Any]] = {
    "whole": {"max_num_seqs": 8, "max_num_batched_tokens": 1000, "enable_prefix_caching": False},
    "parts": {"max_num_seqs": 3, "max_num_batched_tokens": 6},
    "preempted": {"max_num_seqs": 4, "num_gpu_blocks_override": 10, "enable_prefix_caching": False},
}


@cache
def here() -> TransformersEngine:
    """The loop's engine. A full stop ends a completion, too."""
    base = load_model(two_layers(), device_map="cpu", dtype="float32")
    engine = TransformersEngine(base.model, base.tokenizer)
    engine.end_token_ids = (*engine.end_token_ids, *base.tokenizer.encode(".", add_special_tokens=False))
    return engine


def engine(**settings: Any) -> VllmEngine:
    return VllmEngine(two_layers(), here().end_token_ids, {"dtype": "float32", **settings})


def guide(objective: str = "marginal", seed: int = 0) -> ProxyGuide:
    proxy = new_proxy(here().model, {"p_t": 1e-3, "objective": objective, "temperature": 1.1})
    with torch.no_grad():
        proxy.query_out.weight.normal_(generator=torch.Generator().manual_seed(seed))
    return ProxyGuide.build([proxy], here().output_embeddings())


def complete(
    on: Any, chooser: Any, steps: dict[tuple[int, int], Step] | None = None, **params: Any
) -> tuple[Generation, Ledger]:
    def observe(step: Step) -> None:
        position = torch.zeros_like(step.rows) + step.position
        for place, each in enumerate(zip(step.rows.tolist(), position.tolist(), strict=True)):
            assert steps is not None and each not in steps, "each position is seen once"
            steps[each] = step.hidden[place]  # type: ignore[assignment]

    options, spent = LoopOptions(observer=None if steps is None else observe), Ledger()
    wanted = SamplingParams(max_new_tokens=12, **params)
    return generate(on, PROMPTS, wanted, keys=KEYS, guide=chooser, options=options, ledger=spent), spent


@pytest.mark.parametrize("objective", ["marginal", "sequential"])
@pytest.mark.parametrize("how", SETTINGS)
def test_the_tokens_of_the_loop(vllm: None, how: str, objective: str) -> None:
    chooser, seen, expected_seen = guide(objective), dict[Any, Any](), dict[Any, Any]()
    expected, spent = complete(here(), chooser, expected_seen)
    there = engine(**SETTINGS[how])
    found, counted = complete(there, chooser, seen)
    assert found.completion_ids == expected.completion_ids and found.ended == expected.ended
    assert set(found.ended) == {True, False}, "some end, and some are cut"
    assert seen.keys() == expected_seen.keys()
    for place, hidden in seen.items():
        torch.testing.assert_close(hidden, expected_seen[place], atol=1e-5, rtol=1e-4)
    for name in KL_PARTS:
        torch.testing.assert_close(getattr(found, name), getattr(expected, name), atol=1e-5, rtol=1e-4)
    assert counted.generated_tokens == spent.generated_tokens
    happened: dict[str, int] = there._llm.happened
    assert how != "whole" or happened["parts"] == happened["preempted"] == 0
    assert how == "whole" or happened[how] > 0
    fed = sum(LENGTHS) + counted.generated_tokens - len(LENGTHS)
    assert counted.lm_forward_tokens == fed if how != "parts" else 0 < counted.lm_forward_tokens < fed


def test_greedy_decoding_and_the_base_itself(vllm: None) -> None:
    there = engine(**SETTINGS["parts"])
    for chooser, params in ((guide(), {"do_sample": False}), (BaseGuide(0.9), {})):
        expected, _ = complete(here(), chooser, **params)
        found, _ = complete(there, chooser, **params)
        assert found.completion_ids == expected.completion_ids and found.ended == expected.ended
        assert (found.kl_choice is None) == (expected.kl_choice is None)


def test_another_chooser_on_the_same_engine(vllm: None) -> None:
    """As after a round of training: nothing is left of the one before."""
    there, found = engine(), []
    for seed in (0, 1):
        found.append(complete(there, guide(seed=seed))[0].completion_ids)
    assert found[0] != found[1] == complete(here(), guide(seed=1))[0].completion_ids


def test_states_that_no_run_asks_for(vllm: None) -> None:
    hidden, logits = engine(max_num_batched_tokens=4).state_after(PROMPTS[0])
    with torch.no_grad(), here().running():
        _, expected = here().prefill([PROMPTS[0]])
    torch.testing.assert_close(hidden, expected.hidden[0], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(logits, expected.logits[0], atol=1e-5, rtol=1e-4)


def test_what_vllm_cannot_give_is_refused(vllm: None) -> None:
    there = engine()
    with pytest.raises(
        FrugalignError, match="vLLM does not give hidden states of single layers, which a state reward reads"
    ):
        generate(there, PROMPTS, SamplingParams(), options=LoopOptions(state_layers=(1,)))
    looking = guide()
    looking.needs_lookahead = True
    with pytest.raises(FrugalignError, match="vLLM cannot expand its cache, so it does not support lookahead"):
        generate(there, PROMPTS, SamplingParams(), guide=looking)


def test_a_context_that_is_too_short(vllm: None) -> None:
    with pytest.raises(
        FrugalignError, match=r"ended a response after \d+ of 12 tokens: raise max_model_len in vllm_args"
    ):
        complete(engine(max_model_len=19), guide())


def test_a_sampler_that_takes_other_tokens(vllm: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as a watermark, whose tokens the records would not describe. Or one that asks twice."""
    there = engine()
    apply = type(there._llm.processor).apply
    monkeypatch.setattr(
        there._llm.processor, "apply", lambda logits, ctx: apply(there._llm.processor, logits, ctx).roll(1, -1)
    )
    with pytest.raises(FrugalignError, match="vLLM took other tokens than were chosen for it"):
        complete(there, guide())
    monkeypatch.setattr(
        there._llm.processor,
        "apply",
        lambda logits, ctx: [apply(there._llm.processor, logits.clone(), ctx) for _ in "ab"].pop(),
    )
    with pytest.raises(FrugalignError, match="vLLM took other tokens than were chosen for it"):
        complete(there, guide())


def test_rows_whose_states_are_elsewhere(vllm: None, monkeypatch: pytest.MonkeyPatch) -> None:
    there = engine(max_num_seqs=8, max_num_batched_tokens=1000)
    step = type(there._llm).compute_logits
    monkeypatch.setattr(there._llm, "compute_logits", lambda hidden: step(there._llm, hidden).repeat(2, 1))
    with pytest.raises(
        FrugalignError,
        match=r"12 rows of logits for 6 requests from 6 hidden states.* switch batch-sharded sampling and drafts off",
    ):
        complete(there, guide())


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"dtype": "bfloat16"}, "vllm_args holds dtype, which the training sets itself"),
        ({"async_scheduling": True}, "vllm_args holds async_scheduling, which the training sets itself"),
        ({"speculative_config": {"method": "ngram"}}, "speculative decoding a draft chooses tokens"),
        (
            {"tensor_parallel_size": 2},
            "tensor_parallel_size = 2: the proxy reads the logits of the whole vocabulary in one process",
        ),
        ({"pipeline_parallel_size": 4}, "pipeline_parallel_size = 4"),
        ({"seed": object()}, "vllm_args must hold what JSON can hold"),
        ({"swap_space": float("nan")}, "vllm_args must hold what JSON can hold"),
    ],
)
def test_settings_that_are_refused(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(FrugalignError, match=says):
        check_settings({"gpu_memory_utilization": 0.8, "tensor_parallel_size": 1} | settings)
    check_settings({"gpu_memory_utilization": 0.8, "tensor_parallel_size": 1, "max_num_seqs": 512})


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"num_layers": 3}, "vLLM cannot hold .*two-layers-.*: .*unexpected keyword argument 'num_layers'"),
        ({"dtype": "int3"}, "vLLM cannot hold"),
    ],
)
def test_a_model_that_vllm_cannot_hold(vllm: None, settings: dict[str, Any], says: str) -> None:
    with pytest.raises(FrugalignError, match=says):
        engine(**settings)


def test_a_head_without_rows(vllm: None, monkeypatch: pytest.MonkeyPatch) -> None:
    import vllm

    plain = vllm.LLM.generate  # type: ignore[attr-defined]

    def generate(self: Any, *given: Any, **more: Any) -> Any:
        found = plain(self, *given, **more)
        from frugalign_runtime.vllm import CAPTURED

        CAPTURED.lm_head = type("Head", (), {"qweight": torch.zeros(4, 4, dtype=torch.int32)})()
        return found

    monkeypatch.setattr(vllm.LLM, "generate", generate)  # type: ignore[attr-defined]
    with pytest.raises(
        FrugalignError, match="The LM head of this model is quantised in vLLM, and a proxy reads its rows"
    ):
        engine()


def test_versions(tmp_path: Path) -> None:
    with (
        on_path(str(tmp_path)),
        pytest.raises(
            FrugalignError, match=r"vLLM is not installed where the workers run: name the Python .*--ray_python"
        ),
    ):
        engine()
    with (
        on_path(folder(tmp_path, "0.34.1")),
        pytest.raises(FrugalignError, match=r"vLLM 0.34.1 is installed .* install vllm==0.33.\*"),
    ):
        engine()


@pytest.mark.parametrize("how", ["whole", "parts", "preempted"])
def test_states_and_logits_of_texts(vllm: None, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of every token once, but for a text that is fed anew."""
    there, found = (
        engine(**SETTINGS["whole" if how == "whole" else "parts"]),
        dict[int, list[tuple[int, Tensor, Tensor]]](),
    )

    def take(parts: Any, hidden: Tensor, logits: Tensor) -> None:
        assert sum(stop - start for _, start, stop in parts) == len(hidden) == len(logits)
        for text, start, stop in parts:
            if start == 0:
                found[text] = []
            mine, hidden = hidden.split([stop - start, len(hidden) - stop + start])
            scores, logits = logits.split([stop - start, len(logits) - stop + start])
            found[text].append((start, mine, scores))

    texts = [*PROMPTS, [7]]
    if how == "preempted":
        schedule, llm = there._llm._schedule, there._llm

        def preempting() -> Any:
            if llm.running and llm.running[-1].computed and not llm.happened["preempted"]:
                llm._preempt(llm.running[-1], [])
            return schedule()

        monkeypatch.setattr(llm, "_schedule", preempting)
    there.read(texts, take)
    assert how == "whole" or there._llm.happened[how] > 0
    for number, text in enumerate(texts):
        starts = [start for start, _, _ in found[number]]
        assert starts == sorted(set(starts)) and sum(len(states) for _, states, _ in found[number]) == len(text)
        with torch.no_grad(), Forward(here().model) as forward:
            expected = forward(torch.tensor([text]), use_cache=False, keep=len(text))
        torch.testing.assert_close(
            torch.cat([each for _, each, _ in found[number]]), expected.hidden[0], atol=1e-5, rtol=1e-4
        )
        torch.testing.assert_close(
            torch.cat([each for _, _, each in found[number]]), expected.logits[0], atol=1e-4, rtol=1e-4
        )


def test_logits_in_another_order(vllm: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Found by the log-probabilities that vLLM returns."""
    there = engine(**SETTINGS["whole"])
    expect = vllm_sampler().Reading.expect
    monkeypatch.setattr(
        vllm_sampler().Reading, "expect", lambda self, texts, lengths: expect(self, texts[::-1], lengths[::-1])
    )
    with pytest.raises(FrugalignError, match="vLLM computed the logits of stored answers in another order"):
        there.read(PROMPTS, lambda *_: None)


def vllm_sampler() -> Any:
    from frugalign.decoding import vllm_sampler as module

    return module
