"""Not a test: a tiny model of every architecture that is guided, a proxy for it, and the formula of its policy."""

from typing import Any

import torch
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


def gemma(vocabulary: int, cap: float = 3.0) -> Any:
    """Gemma's whole decoding path: soft caps on attention and logits, and a window that is shorter than the prompts."""
    caps = {"final_logit_softcapping": cap, "attn_logit_softcapping": 1.0, "attn_implementation": "eager"}
    config = Gemma2Config(**SMALL | {"vocab_size": vocabulary}, head_dim=8, sliding_window=4, **caps)
    model = Gemma2ForCausalLM(config)
    with torch.no_grad():
        for layer in model.model.layers:  # scores of attention that its cap bends
            layer.self_attn.q_proj.weight.mul_(30)
            layer.self_attn.k_proj.weight.mul_(30)
    return model


def build(name: str) -> Any:
    """A tiny random model with a distribution that is far from flat."""
    torch.manual_seed(0)
    if name == "gpt2":
        model: Any = GPT2LMHeadModel(GPT2Config(vocab_size=V, n_embd=16, n_layer=2, n_head=2, n_positions=64))
    elif name.startswith("qwen2"):
        model = Qwen2ForCausalLM(Qwen2Config(**SMALL, tie_word_embeddings=name == "qwen2-tied"))
    elif name.startswith("gemma2"):
        model = gemma(V)
    elif name == "mistral-window":
        model = MistralForCausalLM(MistralConfig(**SMALL, sliding_window=4))
    else:
        model = LlamaForCausalLM(LlamaConfig(**SMALL, tie_word_embeddings=False))
    with torch.no_grad():
        # Tied weights make a token follow itself: a smaller scale keeps a choice.
        spread = 0.8 if name in ("gpt2", "qwen2-tied") else 2.0
        scale = spread / float(model.get_output_embeddings().weight.std() * 4.0)
        model.get_output_embeddings().weight.mul_(scale)
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    return (_lora(model) if name == "llama-lora" else model).eval()


MODELS = ["llama", "gpt2", "qwen2-tied", "qwen2-untied", "gemma2", "mistral-window", "llama-lora"]


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
    chosen = (log_p.exp() >= proxy.config.p_t) | (torch.arange(len(log_p)) == int(log_p.argmax()))
    rows = inner.get_output_embeddings().weight.float() * proxy.config.embedding_scale
    with torch.no_grad():
        query = proxy.query(h) / proxy.config.dim**0.5
        score = proxy.key(rows) @ query + proxy.bias
        if proxy.config.tail == "keep":
            score = torch.where(chosen, score, proxy.tail_key[0] @ query + proxy.bias)
    weight = log_p + strength * torch.nn.functional.logsigmoid(score)
    if proxy.config.tail == "drop":
        weight = weight.masked_fill(~chosen, -torch.inf)
    return weight.log_softmax(-1)


def padded() -> dict[str, torch.Tensor]:
    width = max(map(len, PROMPTS))
    return {
        "input_ids": torch.tensor([[0] * (width - len(p)) + p for p in PROMPTS]),
        "attention_mask": torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in PROMPTS]),
    }
