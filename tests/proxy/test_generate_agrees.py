"""`generate` with a proxy attached, our loop, and the formula written out over the whole prefix: the same policy."""

import threading
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from scipy import stats
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)
from transformers.modeling_outputs import CausalLMOutputWithPast

from frugalign.base.errors import FrugalignError
from frugalign.decoding import SamplingParams, generate
from frugalign.decoding.loop import LoopOptions
from frugalign.engines.transformers import TransformersEngine, embedding_rows
from frugalign.proxy import attach
from frugalign.proxy.attachment import ProxyLogitsProcessor
from frugalign.proxy.guide import ProxyGuide
from frugalign.proxy.network import ProxyModel, new_proxy

V = 48
PROMPTS = [[5, 6, 7, 8, 9, 10, 11], [12, 13], [14, 15, 16, 17]]
SMALL: dict[str, Any] = {
    "vocab_size": V,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}


class Tokens:
    """All that the loop asks of a tokenizer."""

    pad_token_id = 0
    eos_token_id = None


def _lora(model: Any) -> Any:
    from peft import LoraConfig, get_peft_model

    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"))
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    return adapted


def build(name: str) -> Any:
    """A tiny random model with a distribution that is far from flat."""
    torch.manual_seed(0)
    if name == "gpt2":
        model: Any = GPT2LMHeadModel(GPT2Config(vocab_size=V, n_embd=16, n_layer=2, n_head=2, n_positions=64))
    elif name == "qwen2-untied":
        model = Qwen2ForCausalLM(Qwen2Config(**SMALL, tie_word_embeddings=False))
    elif name == "gemma2-softcap":
        model = Gemma2ForCausalLM(Gemma2Config(**SMALL, head_dim=8, sliding_window=32, final_logit_softcapping=3.0))
    elif name == "mistral-window":
        model = MistralForCausalLM(MistralConfig(**SMALL, sliding_window=4))
    else:
        model = LlamaForCausalLM(LlamaConfig(**SMALL, tie_word_embeddings=False))
    with torch.no_grad():
        # GPT-2's weights are tied, which makes a token follow itself: a smaller scale keeps a choice.
        spread = 0.8 if name == "gpt2" else 2.0
        scale = spread / float(model.get_output_embeddings().weight.std() * 4.0)
        model.get_output_embeddings().weight.mul_(scale)
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    return (_lora(model) if name == "llama-lora" else model).eval()


MODELS = ["llama", "gpt2", "qwen2-untied", "gemma2-softcap", "mistral-window", "llama-lora"]


def proxy_for(model: Any, seed: int = 0, **options: Any) -> ProxyModel:
    proxy = new_proxy(model, {"hidden": 4, "dim": 4, "p_t": 0.02, **options})
    with torch.no_grad():
        for number, parameter in enumerate(proxy.parameters()):
            parameter.add_(
                0.6 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(10 * seed + number))
            )
    return proxy


def formula(model: Any, proxy: ProxyModel, prefix: list[int], strength: float = 1.0) -> torch.Tensor:
    """`log π(·|prefix)` over the vocabulary, written out for the marginal form: one row, no cache, no padding, no hooks of ours."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    caught: list[torch.Tensor] = []
    handle = inner.get_output_embeddings().register_forward_pre_hook(lambda module, inputs: caught.append(inputs[0]))
    with torch.no_grad():
        logits = model(torch.tensor([prefix])).logits[0, -1].float() / proxy.config.temperature
    handle.remove()
    h = caught[0][0, -1].float()
    log_p = logits.log_softmax(-1)
    chosen = (log_p.exp() >= proxy.config.p_t) | (torch.arange(V) == int(log_p.argmax()))
    rows = inner.get_output_embeddings().weight.float() * proxy.config.embedding_scale
    with torch.no_grad():
        score = proxy.key(rows) @ proxy.query(h) / proxy.config.dim**0.5 + proxy.bias
    weight = (log_p + strength * torch.nn.functional.logsigmoid(score)).masked_fill(~chosen, -torch.inf)
    return weight.log_softmax(-1)


def padded() -> dict[str, torch.Tensor]:
    width = max(map(len, PROMPTS))
    return {
        "input_ids": torch.tensor([[0] * (width - len(p)) + p for p in PROMPTS]),
        "attention_mask": torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in PROMPTS]),
    }


@pytest.fixture
def llama() -> Iterator[Any]:
    yield build("llama")


@pytest.mark.parametrize("temperature", [1.0, 0.5])
@pytest.mark.parametrize("name", MODELS)
def test_greedy_of_generate_our_loop_and_the_formula(name: str, temperature: float) -> None:
    """A left-padded batch of different lengths, ten tokens: all three the same on every architecture."""
    model = build(name)
    proxy = proxy_for(model, temperature=temperature)
    with attach(model, proxy):
        hooked = model.generate(**padded(), do_sample=False, max_new_tokens=10)[:, -10:].tolist()
    params = SamplingParams(max_new_tokens=10, do_sample=False)
    ours = generate(
        TransformersEngine(model, Tokens()), PROMPTS, params, guide=ProxyGuide.build([proxy], embedding_rows(model))
    ).completion_ids
    naive = []
    for prompt in PROMPTS:
        ids = list(prompt)
        for _ in range(10):
            ids.append(int(formula(model, proxy, ids).argmax()))
        naive.append(ids[len(prompt) :])
    assert hooked == naive
    assert ours == naive
    base = model.generate(**padded(), do_sample=False, max_new_tokens=10)[:, -10:].tolist()
    assert base != naive, "this proxy must change something"


@pytest.mark.parametrize("temperature", [1.0, 0.5])
@pytest.mark.parametrize("name", MODELS)
def test_the_hooked_logits_are_the_formula_at_every_position(name: str, temperature: float) -> None:
    model = build(name)
    proxy = proxy_for(model, temperature=temperature)
    prompt = PROMPTS[0]
    with attach(model, proxy), torch.no_grad():
        logits = model(torch.tensor([prompt])).logits[0]
    for position in range(len(prompt)):
        wanted = formula(model, proxy, prompt[: position + 1])
        assert torch.equal(wanted.isfinite(), logits[position].isfinite())
        torch.testing.assert_close(logits[position].exp(), wanted.exp(), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_samples_of_generate_and_of_our_loop_follow_the_formula(llama: Any, temperature: float) -> None:
    """Chi-square of 30,000 first tokens each, at α = 1e-3; the base's own distribution is rejected."""
    n, prompt = 30_000, PROMPTS[0]
    proxy = proxy_for(llama, temperature=temperature)
    wanted = formula(llama, proxy, prompt).exp().double()
    possible = wanted > 0
    torch.manual_seed(0)
    with attach(llama, proxy):
        parts = [
            llama.generate(torch.tensor([prompt] * 5000), do_sample=True, max_new_tokens=1)[:, -1]
            for _ in range(n // 5000)
        ]
    ours = generate(
        TransformersEngine(llama, Tokens()),
        [prompt] * n,
        SamplingParams(max_new_tokens=1),
        guide=ProxyGuide.build([proxy], embedding_rows(llama)),
        options=LoopOptions(batch_size=5000),
    )
    for tokens in (torch.cat(parts), torch.tensor([ids[0] for ids in ours.completion_ids])):
        counts = tokens.bincount(minlength=V)
        assert int(counts[~possible].sum()) == 0
        expected = n * wanted[possible] / wanted[possible].sum()
        assert stats.chisquare(counts[possible].numpy(), expected.numpy()).pvalue > 1e-3
        base = formula(llama, proxy, prompt, strength=0.0).exp().double()[possible]
        assert stats.chisquare(counts[possible].numpy(), (n * base / base.sum()).numpy()).pvalue < 1e-3


def beams(model: Any, proxy: ProxyModel, prompt: list[int], n_beams: int, length: int) -> list[int]:
    """Beam search over the formula, by hand."""
    alive: list[tuple[float, list[int]]] = [(0.0, list(prompt))]
    for _ in range(length):
        grown = []
        for score, ids in alive:
            log_pi = formula(model, proxy, ids)
            grown += [
                (score + float(log_pi[token]), [*ids, token])
                for token in log_pi.isfinite().nonzero().flatten().tolist()
            ]
        alive = sorted(grown, key=lambda item: -item[0])[:n_beams]
    return alive[0][1][len(prompt) :]


@pytest.mark.parametrize("temperature", [1.0, 0.5])
@pytest.mark.parametrize("name", MODELS)
def test_beams_are_those_of_the_formula(name: str, temperature: float) -> None:
    model = build(name)
    proxy = proxy_for(model, temperature=temperature)
    with attach(model, proxy):
        found = model.generate(
            torch.tensor([PROMPTS[0]]), num_beams=3, do_sample=False, max_new_tokens=5, length_penalty=0.0
        )
    assert found[0, -5:].tolist() == beams(model, proxy, PROMPTS[0], 3, 5)


@pytest.mark.parametrize("objective", ["sequential", "sequential_integrated"])
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_the_sequential_forms_sample_within_their_emission_probabilities(name: str, objective: str) -> None:
    """Our loop's coin flips, or its integral, against the hooked logits, which are the integral: chi-square of 20,000."""
    model, n = build(name), 20_000
    proxy = proxy_for(model, objective=objective)
    with attach(model, proxy), torch.no_grad():
        log_pi = model(torch.tensor([PROMPTS[0]])).logits[0, -1].double()
    ours = generate(
        TransformersEngine(model, Tokens()),
        [PROMPTS[0]] * n,
        SamplingParams(max_new_tokens=1),
        guide=ProxyGuide.build([proxy], embedding_rows(model)),
        options=LoopOptions(batch_size=5000),
    )
    counts = torch.tensor([ids[0] for ids in ours.completion_ids]).bincount(minlength=V)
    possible = log_pi.isfinite()
    assert int(counts[~possible].sum()) == 0
    expected = log_pi[possible].exp()
    assert stats.chisquare(counts[possible].numpy(), (n * expected / expected.sum()).numpy()).pvalue > 1e-3


@pytest.mark.parametrize("name", ["llama", "gpt2", "mistral-window"])
def test_lookahead_reads_the_state_after_each_candidate(name: str) -> None:
    """Greedy, our loop and `generate`, against a full forward pass per candidate."""
    model = build(name)
    proxy = proxy_for(model, candidate_features="lookahead", max_candidates=4)
    params = SamplingParams(max_new_tokens=6, do_sample=False)
    ours = generate(
        TransformersEngine(model, Tokens()), PROMPTS[:1], params, guide=ProxyGuide.build([proxy], embedding_rows(model))
    ).completion_ids[0]
    with attach(model, proxy):
        hooked = model.generate(torch.tensor(PROMPTS[:1]), do_sample=False, max_new_tokens=6)[0, -6:].tolist()
    ids, caught = list(PROMPTS[0]), []
    handle = model.get_output_embeddings().register_forward_pre_hook(lambda module, inputs: caught.append(inputs[0]))
    with torch.no_grad():
        for _ in range(6):
            log_p = model(torch.tensor([ids])).logits[0, -1].log_softmax(-1)
            top = [
                c
                for c in log_p.topk(4).indices.tolist()
                if log_p[c] >= torch.tensor(0.02).log() or c == int(log_p.argmax())
            ]
            weights = []
            for candidate in top:
                model(torch.tensor([[*ids, candidate]]))
                score = proxy.query(caught[-1][0, -1]).squeeze(-1) + proxy.bias
                weights.append(float(log_p[candidate] + torch.nn.functional.logsigmoid(score)))
            ids.append(top[weights.index(max(weights))])
    handle.remove()
    assert ours == ids[len(PROMPTS[0]) :] == hooked


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
