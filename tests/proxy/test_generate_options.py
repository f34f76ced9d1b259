"""What `generate` offers beside sampling works on a guided model: assistants, warpers, threads, pipelines, and detaching."""

import threading
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from tests.proxy.small_models import MODELS, PROMPTS, V, build, formula, padded, proxy_for
from transformers.modeling_outputs import CausalLMOutputWithPast

from frugalign.base.errors import FrugalignError
from frugalign.proxy import attach
from frugalign.proxy.attachment import ProxyLogitsProcessor
from frugalign.proxy.network import new_proxy


@pytest.fixture
def llama() -> Iterator[Any]:
    yield build("llama")


def test_prompt_lookup_and_an_assistant_change_nothing(llama: Any) -> None:
    proxy = proxy_for(llama)
    ids = torch.tensor([[5, 6, 7, 5, 6, 7, 5, 6]])
    with attach(llama, proxy):
        plain = llama.generate(ids, do_sample=False, max_new_tokens=12)
        assert torch.equal(llama.generate(ids, do_sample=False, max_new_tokens=12, prompt_lookup_num_tokens=3), plain)
        assistant = build("llama")
        assert torch.equal(llama.generate(ids, do_sample=False, max_new_tokens=12, assistant_model=assistant), plain)


def test_warpers_of_the_model_are_neutral_and_those_of_the_caller_act_on_pi(llama: Any) -> None:
    proxy = proxy_for(llama)
    wanted = formula(llama, proxy, PROMPTS[0])
    llama.generation_config.temperature, llama.generation_config.top_k = 0.1, 2
    with attach(llama, proxy):
        ids = torch.tensor([PROMPTS[0]])
        own = llama.generate(ids, do_sample=True, max_new_tokens=1, output_scores=True, return_dict_in_generate=True)
        half = llama.generate(
            ids, do_sample=True, max_new_tokens=1, temperature=0.5, output_scores=True, return_dict_in_generate=True
        )
    torch.testing.assert_close(own.scores[0][0].softmax(-1), wanted.exp(), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(half.scores[0][0].softmax(-1), (wanted / 0.5).softmax(-1), atol=1e-5, rtol=1e-4)
    assert (llama.generation_config.temperature, llama.generation_config.top_k) == (0.1, 2)


def test_detaching_leaves_no_trace_also_after_an_error(llama: Any) -> None:
    ids = torch.tensor(PROMPTS[:1])
    before, settings = llama(ids).logits, llama.generation_config.to_dict()
    with pytest.raises(RuntimeError, match="inside"), attach(llama, proxy_for(llama)):
        assert not torch.equal(llama(ids).logits, before)
        raise RuntimeError("inside")
    assert torch.equal(llama(ids).logits, before)
    assert llama.generation_config.to_dict() == settings
    for module in llama.modules():
        assert not module._forward_hooks and not module._forward_pre_hooks


def test_the_same_proxy_twice_acts_once_and_two_compose(llama: Any) -> None:
    """log π of two proxies: softmax of log p + log a₁ + log a₂ on the candidates that both have."""
    first, second = proxy_for(llama, 0), proxy_for(llama, 1)
    ids = torch.tensor(PROMPTS[:1])
    with torch.no_grad(), attach(llama, first):
        once = llama(ids).logits
        with attach(llama, first):
            assert torch.equal(llama(ids).logits, once)
        with attach(llama, second):
            both = llama(ids).logits[0, -1]
        assert torch.equal(llama(ids).logits, once)
    one, two = formula(llama, first, PROMPTS[0]), formula(llama, second, PROMPTS[0])
    p = formula(llama, first, PROMPTS[0], strength=0.0)
    torch.testing.assert_close(both.exp(), (one + two - p).nan_to_num(-torch.inf).softmax(-1), atol=1e-5, rtol=1e-4)


def test_threads_do_not_disturb_each_other(llama: Any) -> None:
    """Two threads that generate at once under one proxy find what each finds alone."""
    proxy = proxy_for(llama)
    jobs = {0: torch.tensor(PROMPTS[:1]), 1: torch.tensor([PROMPTS[0][::-1]])}
    found: dict[int, list[torch.Tensor]] = {0: [], 1: []}

    def work(number: int) -> None:
        for _ in range(5):
            with attach(llama, proxy):
                found[number].append(llama.generate(jobs[number], do_sample=False, max_new_tokens=12))

    with attach(llama, proxy):
        alone = {number: llama.generate(ids, do_sample=False, max_new_tokens=12) for number, ids in jobs.items()}
    threads = [threading.Thread(target=work, args=(number,)) for number in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number, results in found.items():
        assert len(results) == 5
        assert all(torch.equal(result, alone[number]) for result in results)


def test_the_logits_processor_for_engines_that_take_nothing_else(llama: Any) -> None:
    from transformers import LogitsProcessorList

    proxy = proxy_for(llama)
    with attach(llama, proxy):
        wanted = llama.generate(**padded(), do_sample=False, max_new_tokens=8)
    processor = ProxyLogitsProcessor(llama, proxy)
    found = llama.generate(
        **padded(), do_sample=False, max_new_tokens=8, logits_processor=LogitsProcessorList([processor])
    )
    processor.detach()
    assert torch.equal(found, wanted)


@pytest.mark.parametrize("name", MODELS)
def test_pipeline_and_streamer_on_every_architecture(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """`pipeline` returns, and `TextStreamer` prints, what plain guided `generate` gives."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from transformers import PreTrainedTokenizerFast, TextStreamer, pipeline

    words = Tokenizer(WordLevel({f"w{index}": index for index in range(V)}, unk_token="w0"))
    words.pre_tokenizer = Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="w0", padding_side="left")
    model = build(name)
    proxy = proxy_for(model)
    text = " ".join(f"w{token}" for token in PROMPTS[0])
    with attach(model, proxy):
        wanted = model.generate(torch.tensor(PROMPTS[:1]), do_sample=False, max_new_tokens=6)[0, -6:].tolist()
        said = pipeline("text-generation", model=model, tokenizer=tokenizer)(
            text, do_sample=False, max_new_tokens=6, return_full_text=False
        )
        capsys.readouterr()
        streamer = TextStreamer(tokenizer, skip_prompt=True)
        model.generate(torch.tensor(PROMPTS[:1]), do_sample=False, max_new_tokens=6, streamer=streamer)
    expected = [f"w{token}" for token in wanted]
    assert said[0]["generated_text"].split() == expected
    assert capsys.readouterr().out.split() == expected


def test_a_head_that_is_never_called_and_a_tuple_are_refused() -> None:
    """A fused LM head leaves the hook nothing to read; a tuple has no logits to replace: one sentence each."""
    model = build("llama")
    proxy = new_proxy(model, {}, seed=0)
    ids = torch.tensor([PROMPTS[0]])
    with attach(model, proxy), pytest.raises(FrugalignError, match="return_dict"):
        model(input_ids=ids, return_dict=False)
    weight = model.lm_head.weight

    def fused(*args: Any, **kwargs: Any) -> Any:
        hidden = model.model(input_ids=kwargs["input_ids"]).last_hidden_state
        return CausalLMOutputWithPast(logits=hidden @ weight.T)

    model.forward = fused
    with attach(model, proxy), pytest.raises(FrugalignError, match="without calling its LM head"):
        model(input_ids=ids)


def test_the_loss_of_a_guided_model_is_that_of_its_logits() -> None:
    model = build("llama")
    proxy = proxy_for(model, p_t=0.0)
    ids = torch.tensor([PROMPTS[0]])
    with attach(model, proxy):
        found = model(input_ids=ids, labels=ids)
    log_pi = found.logits[0, :-1].log_softmax(-1).gather(-1, ids[0, 1:, None])
    torch.testing.assert_close(found.loss, -log_pi.mean())
    assert float(found.loss) != pytest.approx(float(model(input_ids=ids, labels=ids).loss))
