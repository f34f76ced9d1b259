"""Base models for measuring speed and cost: the small models of the trials folder, and random ones."""

from __future__ import annotations

from typing import Any

import torch
from experiments.trials import are_named, trials
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from frugalign import sandbox
from frugalign.engines import load_model

PROMPT_TOKENS = 32


def tokenizer() -> Any:
    """The sandbox's tokenizer. The random models need it only for padding and end ids."""
    return AutoTokenizer.from_pretrained(sandbox.model, padding_side="left")


def small(name: str) -> tuple[Any, Any] | None:
    """`stories260k` or `chat-3m` with its tokenizer; None without a trials folder."""
    if not are_named():
        return None
    loaded = load_model(str(trials() / "models" / name))
    return loaded.model, loaded.tokenizer


def random_llama_30m() -> Any:
    """A random Llama of 30 million parameters."""
    return random_llama(512, 16_384, layers=7, inner=1_408)


def random_llama(width: int, vocabulary: int, layers: int, inner: int | None = None) -> Any:
    """A random Llama; `inner`: width of its feed-forward layers."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=inner or width * 8 // 3,
        num_hidden_layers=layers,
        num_attention_heads=8,
        num_key_value_heads=8,
        max_position_embeddings=512,
        tie_word_embeddings=True,
    )
    return _frozen(LlamaForCausalLM(config))


def random_gpt2_124m() -> Any:
    """A random GPT-2 of 124 million parameters."""
    torch.manual_seed(0)
    return _frozen(GPT2LMHeadModel(GPT2Config()))


def _frozen(model: Any) -> Any:
    # A random model practically never emits this end token, so every row has the full length.
    model.generation_config.eos_token_id = model.config.vocab_size - 1
    model.generation_config.pad_token_id = 0
    return model.eval().requires_grad_(False)


def random_prompts(n: int, vocabulary: int, seed: int = 0) -> list[list[int]]:
    """`n` prompts of `PROMPT_TOKENS` random tokens."""
    generator = torch.Generator().manual_seed(seed)
    ids: list[list[int]] = torch.randint(4, vocabulary - 1, (n, PROMPT_TOKENS), generator=generator).tolist()
    return ids
