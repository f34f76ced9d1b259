"""Not a test: a tiny base and its tokenizer."""

from __future__ import annotations

from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast


def llama(seed: int = 0, vocabulary: int = 60) -> Any:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2
    )
    return LlamaForCausalLM(config).eval()


def tokenizer(prefix: str = "w", n: int = 60) -> PreTrainedTokenizerFast:
    words = {f"{prefix}{index}": index for index in range(n)}
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel(words, unk_token=f"{prefix}0")), eos_token=f"{prefix}1"
    )
