"""Before any training: the default proxy is small, the marginal one is the base itself, the sequential one nearly so."""

from typing import Any

import pytest
import torch
from scipy import stats
from tests.proxy.small_models import PROMPTS, SMALL, Tokens, gemma
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from frugalign.decoding import SamplingParams, generate
from frugalign.decoding.noise import Noise, row_keys
from frugalign.engines.transformers import TransformersEngine, embedding_rows
from frugalign.proxy import attach, network
from frugalign.proxy.guide import ProxyGuide
from frugalign.proxy.network import network_size, new_proxy
from frugalign.proxy.overseer import even_offset

V = 64
WIDE = 262_000
MODELS = ["llama-tied", "gpt2", "qwen2-tied", "qwen2-untied"]


def build(name: str) -> Any:
    torch.manual_seed(0)
    small = SMALL | {"vocab_size": V}
    if name == "gpt2":
        model: Any = GPT2LMHeadModel(GPT2Config(vocab_size=V, n_embd=16, n_layer=2, n_head=2))
    elif name.startswith("qwen2"):
        model = Qwen2ForCausalLM(Qwen2Config(**small, tie_word_embeddings=name == "qwen2-tied"))
    else:
        model = LlamaForCausalLM(LlamaConfig(**small, tie_word_embeddings=True))
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(20)
    return model.eval()


@pytest.fixture(scope="module")
def wide() -> Any:
    """A Gemma with its own vocabulary, whose likeliest token has a probability of about a tenth."""
    torch.manual_seed(0)
    model = gemma(WIDE, cap=30.0)
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(1.8 / 0.02)
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = None, 0
    return model.eval()


def exactly_the_base(log_pi: torch.Tensor, logits: torch.Tensor, temperature: float) -> bool:
    """|Δ log π| ≤ 1e-6 over the vocabulary, beside what float32 itself cannot hold: the error of the base's own log-softmax."""
    exact = torch.log_softmax(logits.double() / temperature, -1)
    rounding = float((torch.log_softmax(logits / temperature, -1) - exact).abs().max())
    return float((log_pi - exact).abs().max()) <= 1e-6 + 2 * rounding


def states(model: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """LM head inputs and logits of 40 positions."""
    ids = torch.randint(0, V, (4, 10), generator=torch.Generator().manual_seed(0))
    caught: list[torch.Tensor] = []
    handle = model.get_output_embeddings().register_forward_pre_hook(lambda module, inputs: caught.append(inputs[0]))
    with torch.no_grad():
        logits = model(ids).logits
    handle.remove()
    return caught[0].flatten(0, 1), logits.flatten(0, 1).float()


def full(model: Any, proxy: Any) -> torch.Tensor:
    """π over the whole vocabulary, `[40, V]`."""
    return ProxyGuide.build([proxy], embedding_rows(model)).log_probs(*states(model)).exp()


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("bias", [0.0, 3.0, -2.0])
@pytest.mark.parametrize("temperature", [1.0, 0.5])
@pytest.mark.parametrize(("p_t", "cap"), [(0.0, V), (0.01, 256), (0.05, 3), (0.3, 1)])
def test_an_untrained_marginal_proxy_is_the_base(
    name: str, bias: float, temperature: float, p_t: float, cap: int
) -> None:
    """Over the full vocabulary |Δ log π| ≤ 1e-6, for any bias, threshold and cap."""
    model = build(name)
    options = {"p_t": p_t, "max_candidates": cap, "initial_bias": bias, "temperature": temperature}
    guide = ProxyGuide.build([new_proxy(model, options)], embedding_rows(model))
    h, logits = states(model)
    assert exactly_the_base(guide.log_probs(h, logits), logits, temperature)


@pytest.mark.parametrize(
    ("p_t", "cap", "temperature", "bias"),
    [(0.01, 256, 1.0, 0.0), (0.0, 256, 0.5, 3.0), (1e-4, 64, 2.0, -2.0), (1e-5, 4096, 1.0, 1.0), (0.9, 1, 0.7, 0.0)],
)
def test_it_is_the_base_on_a_large_vocabulary(wide: Any, p_t: float, cap: int, temperature: float, bias: float) -> None:
    """Soft caps, a window shorter than the prompt and 262,000 tokens: the hooked logits of `attach` at every position."""
    options = {"p_t": p_t, "max_candidates": cap, "initial_bias": bias, "temperature": temperature}
    ids = torch.tensor(PROMPTS[:1])
    with torch.no_grad():
        logits = wide(ids).logits[0]
        with attach(wide, new_proxy(wide, options)):
            hooked = wide(ids).logits[0]
    assert 0.05 < float(logits.softmax(-1).amax(-1).median()) < 0.5
    assert exactly_the_base(hooked, logits, temperature)


def test_its_greedy_tokens_are_those_of_the_base_on_a_large_vocabulary(wide: Any) -> None:
    """`generate`, beams and our loop."""
    proxy, ids = new_proxy(wide, {"p_t": 1e-3}), torch.tensor(PROMPTS[:1])
    search = {"greedy": {}, "beams": {"num_beams": 2, "length_penalty": 0.0}}
    with torch.no_grad():
        base = {name: wide.generate(ids, do_sample=False, max_new_tokens=4, **each) for name, each in search.items()}
        with attach(wide, proxy):
            for name, each in search.items():
                assert torch.equal(wide.generate(ids, do_sample=False, max_new_tokens=4, **each), base[name])
    guide = ProxyGuide.build([proxy], embedding_rows(wide))
    params = SamplingParams(max_new_tokens=4, do_sample=False)
    ours = generate(TransformersEngine(wide, Tokens()), PROMPTS[:1], params, guide=guide).completion_ids[0]
    assert ours == base["greedy"][0, -4:].tolist()


@pytest.mark.parametrize("temperature", [1.0, 0.5])
@pytest.mark.parametrize("name", ["gpt2", "qwen2-untied"])
def test_its_samples_are_those_of_the_base(name: str, temperature: float) -> None:
    """Chi-square of 20,000 first tokens at α = 1e-3 over the vocabulary, at the position where most is left to the tail."""
    model, n = build(name), 20_000
    guide = ProxyGuide.build([new_proxy(model, {"p_t": 0.1, "temperature": temperature})], embedding_rows(model))
    h, logits = states(model)
    tail = (logits / temperature).softmax(-1)
    row = int(tail.masked_fill(tail >= 0.1, 0.0).sum(-1).argmax())
    h, logits = h[row : row + 1], logits[row : row + 1]
    p = (logits[0].double() / temperature).softmax(-1)
    assert float(p[p < 0.1].sum()) > 0.1
    noise = Noise(row_keys(3, 0, range(n), [0] * n), 0)
    counts = guide.emit(h.expand(n, -1), logits.expand(n, -1), noise).token.bincount(minlength=V)
    rare = n * p < 10
    observed, expected = ([*each[~rare].tolist(), float(each[rare].sum())] for each in (counts, n * p))
    assert sum(expected) == pytest.approx(n) and stats.chisquare(observed, expected).pvalue > 1e-3


@pytest.mark.slow
def test_its_samples_on_a_large_vocabulary_are_those_of_the_base(wide: Any) -> None:
    """Of 600 draws, the base's distribution function at the token drawn is uniform: twenty bins, α = 1e-3, tokens by descending p."""
    guide = ProxyGuide.build([new_proxy(wide, {"p_t": 0.01})], embedding_rows(wide))
    with torch.no_grad():
        hidden = wide.model(torch.tensor(PROMPTS[:1])).last_hidden_state[:, -1]
        logits = wide(torch.tensor(PROMPTS[:1])).logits[:, -1]
    p, order = logits[0].double().softmax(-1).sort(descending=True)
    below = torch.empty_like(p).scatter_(0, order, p.cumsum(0) - p)
    p = logits[0].double().softmax(-1)
    uniform = torch.rand(600, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    tokens = torch.cat(
        [
            guide.emit(
                hidden.expand(50, -1), logits.expand(50, -1), Noise(row_keys(0, 0, range(i, i + 50), [0] * 50), 0)
            ).token
            for i in range(0, 600, 50)
        ]
    )
    in_tail = float((p[tokens] < 0.01).double().mean())
    assert abs(in_tail - float(p[p < 0.01].sum())) < 0.05 and in_tail > 0.05
    bins = ((below[tokens] + uniform * p[tokens]) * 20).long().bincount(minlength=20)
    assert stats.chisquare(bins.numpy()).pvalue > 1e-3


@pytest.mark.parametrize("name", MODELS)
def test_restricted_it_is_the_base_renormalised_on_its_candidates(name: str) -> None:
    model = build(name)
    p = states(model)[1].softmax(-1)
    kept = (p >= 0.05) | (p == p.amax(-1, keepdim=True))
    wanted = torch.where(kept, p, torch.zeros_like(p))
    torch.testing.assert_close(
        full(model, new_proxy(model, {"p_t": 0.05, "tail": "drop"})),
        wanted / wanted.sum(-1, keepdim=True),
        atol=1e-6,
        rtol=0,
    )


@pytest.mark.parametrize("name", ["llama-tied", "gpt2"])
@pytest.mark.parametrize("bias", [0.0, 1.0, 3.0])
@pytest.mark.parametrize("p_t", [0.0, 0.05])
def test_an_untrained_sequential_proxy_is_the_base_to_second_order(name: str, bias: float, p_t: float) -> None:
    """Total variation of at most r²/4 where it rejects a share r = 1 − σ(b) of rare tokens. A constant acceptance is several times as far off."""
    model = build(name)
    p = states(model)[1].softmax(-1)
    proxy = new_proxy(model, {"objective": "sequential", "initial_bias": bias, "p_t": p_t, "max_candidates": V})
    rejected = 1 - float(torch.tensor(bias).sigmoid())
    distance = (full(model, proxy) - p).abs().sum(-1) / 2
    assert 1e-6 < float(distance.max()) <= rejected**2 / 4
    proxy.offset = lambda log_p: 0.0
    constant = (full(model, proxy) - p).abs().sum(-1) / 2
    assert float(constant.max()) > 4 * float(distance.max())


@pytest.mark.parametrize(
    ("width", "parameters"), [(64, 260_032), (192, 3_000_000), (768, 124_000_000), (4096, 7_000_000_000)]
)
@pytest.mark.parametrize("features", ["embedding", "lookahead"])
def test_the_default_size_stays_under_one_per_cent(width: int, parameters: int, features: str) -> None:
    """The count by hand: LayerNorm, D×H + H, then H×d + d, D×d + d and d (embedding) or twice H + 1 (lookahead), and b."""
    size = network_size(width, parameters, features)
    rest = 2 * (size + 1) if features == "lookahead" else (size + 2) * size + (width + 1) * size
    count = 2 * width + (width + 1) * size + rest + 1
    assert count < 0.01 * parameters
    assert size >= 16 or features == "lookahead"


@pytest.mark.parametrize("features", ["embedding", "lookahead", "token_bias"])
def test_logits_of_an_integrated_sequential_proxy_move_four_times_as_far(features: str) -> None:
    """With the weights of a marginal one, but for the bias b = 2 and the offset of the proposals."""
    model, options = build("llama-tied"), {"hidden": 4, "candidate_features": features, "initial_bias": 2.0}
    marginal, sequential = (
        new_proxy(model, options | {"objective": name}) for name in ("marginal", "sequential_integrated")
    )
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in marginal.named_parameters():
            if name != "bias":
                parameter.add_(torch.randn(parameter.shape, generator=generator))
        sequential.load_state_dict(marginal.state_dict())
        ids = torch.tensor([[3, 5, V]])
        h, log_p = torch.randn(1, 16, generator=generator), torch.tensor([[0.5, 0.3, 0.2]]).log()
        read = {"keys": marginal.keys(embedding_rows(model))} if features == "embedding" else {}
        read |= {"lookahead": torch.randn(1, 3, 16, generator=generator)} if features == "lookahead" else {}
        small, large = (proxy(h, ids, log_p=log_p, **read) for proxy in (marginal, sequential))
    assert float((small - 2).abs().min()) > 1e-3
    torch.testing.assert_close(large - even_offset(log_p, 2.0) - 2, 4 * (small - 2), atol=1e-5, rtol=1e-5)


def test_the_count_by_hand_is_the_network_s() -> None:
    model = build("llama-tied")
    for features in ("embedding", "lookahead"):
        proxy = new_proxy(model, {"hidden": 6, "dim": 6, "candidate_features": features})
        rest = 2 * 7 if features == "lookahead" else 7 * 6 + 17 * 6 + 6
        assert sum(p.numel() for p in proxy.parameters()) == 2 * 16 + 17 * 6 + rest + 1


def test_the_head_is_not_copied_and_its_keys_come_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A base in bfloat16: the rows are the head's own memory, and the keys and their scale those of the whole in float32."""
    model = build("llama-tied").bfloat16()
    rows = embedding_rows(model)
    assert rows.dtype == torch.bfloat16 and rows.data_ptr() == model.get_output_embeddings().weight.data_ptr()
    proxy = new_proxy(model, {})
    assert proxy.config.embedding_scale == pytest.approx(1 / float(rows.float().pow(2).mean().sqrt()), rel=1e-6)
    whole = proxy.keys(rows.float())
    monkeypatch.setattr(network, "_ROWS", 10)
    torch.testing.assert_close(proxy.keys(rows), whole)
    assert len(whole) == V + 1
    assert new_proxy(model, {}).config.embedding_scale == pytest.approx(proxy.config.embedding_scale, rel=1e-6)
