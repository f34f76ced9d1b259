"""What training a proxy needs of memory beside the model, measured on a random Llama in bfloat16 with a large vocabulary.

    python -m experiments.memory [--smoke]

The model has 1.2 billion parameters: width 2,048, 16 layers and 131,072 tokens. First its own responses are sampled, then one rollout of as many is
made and trained on. Each figure is the process's peak, without what it held when the model was loaded. At p_t = 0 every position has 256 candidates and the
tail, which is the worst case. The kernel's peak is reset between figures, so the script runs on Linux.
"""

from __future__ import annotations

import gc
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from experiments import bases
from experiments.summary import script_options, write_summary
from transformers import LlamaConfig, LlamaForCausalLM

from frugalign.decoding import SamplingParams, generate
from frugalign.engines.loading import LoadedModel
from frugalign.engines.transformers import TransformersEngine, embedding_rows
from frugalign.methods.proxy_rlhf.config import ProxyConfig
from frugalign.methods.proxy_rlhf.trainer import ProxyTrainer
from frugalign.proxy.guide import ProxyGuide
from frugalign.proxy.network import ProxyModel, new_proxy

RESPONSES, TOKENS = 16, 4
MEGABYTE = 1e6


def random_model(width: int, vocabulary: int, layers: int) -> Any:
    """A random Llama in bfloat16, with tied embeddings. Its weights repeat, since drawing a billion numbers takes minutes."""
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=width * 8 // 3,
        num_hidden_layers=layers,
        num_attention_heads=16,
        num_key_value_heads=4,
        max_position_embeddings=512,
        tie_word_embeddings=True,
    )
    with torch.device("meta"):
        model: Any = LlamaForCausalLM(config)
    model = model.to(torch.bfloat16).to_empty(device="cpu")
    noise = 0.02 * torch.randn(999_983, generator=torch.Generator().manual_seed(0))
    for parameter in model.parameters():
        flat = parameter.data.reshape(-1)
        for start in range(0, len(flat), len(noise)):
            part = flat[start : start + len(noise)]
            part.copy_(noise[: len(part)])
    model.model.rotary_emb = type(model.model.rotary_emb)(config)
    model.generation_config.eos_token_id = vocabulary - 1
    return model.eval().requires_grad_(False)


def _status(field: str) -> float:
    lines = Path("/proc/self/status").read_text("utf-8").splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith(field)) * 1024 / MEGABYTE


def peak_of(run: Callable[[], Any]) -> float:
    """How many megabytes more than before the process holds at once while `run` runs."""
    gc.collect()
    before = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    run()
    return _status("VmHWM") - before


def main() -> None:
    """Measure every step, write and print."""
    is_smoke = script_options(__doc__).smoke
    width, vocabulary, layers = (64, 4096, 2) if is_smoke else (2048, 131_072, 16)
    model, tokenizer = random_model(width, vocabulary, layers), bases.tokenizer()
    size = sum(each.numel() for each in model.parameters())
    prompts = ["Good day, keeper. A balm for my horse."] * 4
    ids = [tokenizer(prompt).input_ids for prompt in prompts for _ in range(RESPONSES // len(prompts))]
    engine, params = TransformersEngine(model, tokenizer), SamplingParams(max_new_tokens=TOKENS)
    proxies: list[ProxyModel] = []
    rows: dict[str, dict[str, Any]] = {}

    def measure(label: str, run: Callable[[], Any]) -> None:
        started = time.perf_counter()
        rows[label] = {"MB": peak_of(run), "seconds": time.perf_counter() - started}
        print(label, rows[label], flush=True)

    def train() -> None:
        with tempfile.TemporaryDirectory() as folder:
            fixed: dict[str, Any] = {"report_to": "none", "save_strategy": "no", "disable_tqdm": True, "use_cpu": True}
            args = ProxyConfig(
                output_dir=folder,
                max_new_tokens=TOKENS,
                num_generations=4,
                per_device_train_batch_size=RESPONSES,
                max_steps=4,
                p_t=0.0,
                **fixed,
            )
            data = Dataset.from_dict({"prompt": prompts})
            ProxyTrainer(LoadedModel(model, tokenizer, "random", None), last_digits, args, data).train()

    measure("the model's own responses", lambda: generate(engine, ids, params))
    measure("a new proxy", lambda: proxies.append(new_proxy(model, {"p_t": 0.0})))
    measure("its keys", lambda: ProxyGuide.build(proxies, embedding_rows(model)))
    measure("a rollout and its optimisation", train)
    facts = {
        "parameters": size,
        "model, MB": 2 * size / MEGABYTE,
        "proxy": sum(p.numel() for p in proxies[0].parameters()),
    }
    facts |= {"dim": proxies[0].config.dim, "responses": RESPONSES, "tokens": TOKENS}
    if not is_smoke:
        write_summary("memory", "python -m experiments.memory", "a random Llama in bfloat16, 1.2 billion", rows, facts)
    print(facts)


def last_digits(completion_ids: list[list[int]], **_: Any) -> list[float]:
    """A reward that differs between responses of random tokens, most of which are no text."""
    return [float(sum(ids) % 10) for ids in completion_ids]


if __name__ == "__main__":
    main()
