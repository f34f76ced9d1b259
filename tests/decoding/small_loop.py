"""Not a test: a small model, prompts and a proxy for the decoding loop."""

from functools import cache
from typing import Any

import torch
from tests.two_layers import two_layers
from transformers import (
    AutoTokenizer,
    LlamaForCausalLM,
)

from frugalign.decoding import SamplingParams
from frugalign.engines.transformers import embedding_rows
from frugalign.proxy.guide import ProxyGuide
from frugalign.proxy.network import new_proxy

END = 3


@cache
def base() -> tuple[Any, Any]:
    """A small model in float32."""
    tokenizer = AutoTokenizer.from_pretrained(two_layers(), padding_side="left")
    model = LlamaForCausalLM.from_pretrained(two_layers(), dtype=torch.float32)
    return model.eval().requires_grad_(False), tokenizer


@cache
def prompts(n: int = 32) -> list[list[int]]:
    """Prompts of 4 to 19 tokens."""
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(4, 200, (4 + row % 16,), generator=generator).tolist() for row in range(n)]


def guide(objective: str = "marginal", features: str = "embedding") -> Any:
    """A proxy whose weights do something."""
    model, _ = base()
    options = {"objective": objective, "candidate_features": features, "p_t": 0.001, "max_candidates": 8}
    proxy = new_proxy(model, options)
    with torch.no_grad():
        for number, parameter in enumerate(proxy.parameters()):
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(30 + number)))
    return ProxyGuide.build([proxy], embedding_rows(model))


PARAMS = SamplingParams(max_new_tokens=24)
