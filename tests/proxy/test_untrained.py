"""Before any training: the default proxy is small, the marginal one is the base itself, the sequential one nearly so."""

from typing import Any

import pytest
import torch
from tests.proxy.small_models import SMALL
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from frugalign.engines.transformers import embedding_rows
from frugalign.proxy import network
from frugalign.proxy.guide import ProxyGuide
from frugalign.proxy.network import network_size, new_proxy

V = 64


def build(name: str) -> Any:
    torch.manual_seed(0)
    small = SMALL | {"vocab_size": V}
    if name == "gpt2":
        model: Any = GPT2LMHeadModel(GPT2Config(vocab_size=V, n_embd=16, n_layer=2, n_head=2))
    elif name == "qwen2-untied":
        model = Qwen2ForCausalLM(Qwen2Config(**small, tie_word_embeddings=False))
    else:
        model = LlamaForCausalLM(LlamaConfig(**small, tie_word_embeddings=True))
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(20)
    return model.eval()


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


@pytest.mark.parametrize("name", ["llama-tied", "gpt2", "qwen2-untied"])
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
    exact = torch.log_softmax(logits.double() / temperature, -1)
    # What float32 itself cannot hold: the base's own log-softmax is this far from the exact one.
    rounding = float((torch.log_softmax(logits / temperature, -1) - exact).abs().max())
    assert float((guide.log_probs(h, logits) - exact).abs().max()) <= 1e-6 + 2 * rounding


@pytest.mark.parametrize("name", ["llama-tied", "gpt2", "qwen2-untied"])
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
@pytest.mark.parametrize("bias", [1.0, 3.0, 6.0])
def test_an_untrained_sequential_proxy_is_within_its_bias_of_the_base(name: str, bias: float) -> None:
    """Total variation at most 1 − σ(b), and not zero: a constant a < 1 flattens p."""
    model = build(name)
    p = states(model)[1].softmax(-1)
    options = {"objective": "sequential", "initial_bias": bias, "p_t": 0.0, "max_candidates": V}
    distance = (full(model, new_proxy(model, options)) - p).abs().sum(-1) / 2
    bound = 1 - torch.tensor(bias).sigmoid()
    assert float(distance.max()) <= float(bound) + 1e-5
    assert float(distance.max()) > 0.02 * float(bound)


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
