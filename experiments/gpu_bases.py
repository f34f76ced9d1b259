"""Random Llamas of the shapes of real ones, made on their device, and what a step of theirs must at least read."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

GB = 1e9
_SPREAD = 3.0
"""Standard deviation of the logits. Some ten tokens then reach a probability of 0.01, about as many as on a trained base."""


@dataclass(frozen=True)
class Shape:
    """A Llama's shape. `kv_heads` of `heads` have keys and values of their own."""

    width: int
    layers: int
    heads: int
    kv_heads: int
    inner: int
    vocabulary: int

    def config(self) -> LlamaConfig:
        return LlamaConfig(
            vocab_size=self.vocabulary,
            hidden_size=self.width,
            intermediate_size=self.inner,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.kv_heads,
            max_position_embeddings=4096,
            tie_word_embeddings=False,  # tied, a random base would only repeat its last token
        )

    @property
    def parameters(self) -> int:
        """All weights."""
        return self.read_weights + self.vocabulary * self.width

    @property
    def read_weights(self) -> int:
        """Weights that every decoding step reads: all but the input embeddings, of which it reads a row."""
        head = self.width // self.heads
        attention = self.width * (2 * self.width + 2 * self.kv_heads * head)
        layer = attention + 3 * self.width * self.inner + 2 * self.width
        return self.layers * layer + self.width + self.vocabulary * self.width

    def kv_bytes(self, itemsize: int = 2) -> int:
        """Bytes of keys and values of one token."""
        return 2 * self.layers * self.kv_heads * (self.width // self.heads) * itemsize


SHAPES = {
    "toy": Shape(64, 2, 4, 2, 128, 512),
    "1B": Shape(2048, 16, 32, 8, 8192, 128_256),
    "7B": Shape(4096, 32, 32, 8, 14_336, 32_000),
    "70B": Shape(8192, 80, 64, 8, 28_672, 128_256),
}


def random_base(shape: Shape, device: str, dtype: torch.dtype) -> Any:
    """A random Llama whose next token is about as certain as a trained one's. It practically never ends a response."""
    config = shape.config()
    with torch.device("meta"):
        model: Any = LlamaForCausalLM(config)
    model = model.to(dtype).to_empty(device=device)
    generator = torch.Generator(device).manual_seed(0)
    for name, parameter in model.named_parameters():
        if name.endswith("norm.weight"):
            parameter.data.fill_(1.0)
        else:
            spread = _SPREAD / shape.width**0.5 if name.startswith("lm_head") else 0.02
            parameter.data.normal_(0.0, spread, generator=generator)
    model.model.rotary_emb = type(model.model.rotary_emb)(config).to(device)
    model.generation_config.eos_token_id = shape.vocabulary - 1
    model.generation_config.pad_token_id = 0
    return model.eval().requires_grad_(False)


def random_prompts(n: int, length: int, vocabulary: int) -> list[list[int]]:
    """`n` prompts of `length` random tokens."""
    ids: list[list[int]] = torch.randint(
        4, vocabulary - 1, (n, length), generator=torch.Generator().manual_seed(0)
    ).tolist()
    return ids


def wait_for(device: str) -> None:
    """Wait until the device has done everything."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()


@dataclass(frozen=True)
class Timed:
    """Seconds of a block, and the most memory that its device held, in bytes: of the process on a CPU."""

    seconds: float
    peak: float
    result: Any


def timed(device: str, run: Callable[[], Any]) -> Timed:
    """Run once and measure."""
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats()
    wait_for(device)
    started = time.perf_counter()
    result = run()
    wait_for(device)
    seconds = time.perf_counter() - started
    if device.startswith("cuda"):
        return Timed(seconds, float(torch.cuda.max_memory_allocated()), result)
    unit = 1 if sys.platform == "darwin" else 1024
    return Timed(seconds, float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit), result)


def copy_bandwidth(device: str, size: int) -> float:
    """Bytes a second that a copy of `size` bytes reads and writes together; the best of five."""
    source = torch.zeros(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    best = min(timed(device, lambda: target.copy_(source)).seconds for _ in range(6))
    return 2 * size / best
