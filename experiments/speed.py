"""The speed of guided and unguided decoding by our loop and by `generate`, and optimisation time as a share of rollout time.

    FRUGALIGN_TRIALS=folder python -m experiments.speed [--smoke]

Prompts have 32 tokens and completions 128, sampled at T = 1. No row ends early. The four alternatives take turns in one process. Results are
medians and their ratios. `chat-3m` needs the trials folder, the random GPT-2 of 124 million parameters does not.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from experiments.bases import random_gpt2_124m, random_prompts, small, tokenizer
from experiments.summary import script_options, write_summary
from experiments.timing import medians

from frugalign.decoding import SamplingParams, generate
from frugalign.decoding.loop import LoopOptions
from frugalign.engines.transformers import TransformersEngine, embedding_rows
from frugalign.methods.proxy_rlhf import ProxyConfig, ProxyTrainer
from frugalign.proxy import attach
from frugalign.proxy.guide import ProxyGuide
from frugalign.proxy.network import ProxyModel, new_proxy


@dataclass(frozen=True)
class Size:
    """`new_tokens` of each response, `batches` of the decoding, `repeats`, and `completions` of a training rollout."""

    new_tokens: int
    batches: tuple[int, ...]
    repeats: int
    completions: int


FULL = Size(128, (1, 16, 64), 5, 32)
SMOKE = Size(4, (1,), 1, 16)
# At T = 1 a random GPT-2 is nearly uniform and has one candidate. At this temperature it has about as many as a trained model.
RANDOM_TEMPERATURE = 0.11


def proxy_for(model: Any) -> ProxyModel:
    """A default proxy with random weights, so that it rejects tokens."""
    proxy = new_proxy(model, {}, seed=0)
    with torch.no_grad():
        for parameter in proxy.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    return proxy


def ways(model: Any, tok: Any, proxy: ProxyModel, batch: int, new_tokens: int) -> dict[str, Callable[[], Any]]:
    """The four alternatives for decoding one batch."""
    prompts = random_prompts(batch, min(model.config.vocab_size, len(tok)))
    ids = torch.tensor(prompts)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    settings = {"max_new_tokens": new_tokens, "min_new_tokens": new_tokens, "do_sample": True, "top_k": 0, "top_p": 1.0}
    params = SamplingParams(max_new_tokens=new_tokens)
    guide = ProxyGuide.build([proxy], embedding_rows(model))

    def guided_generate() -> Any:
        with attach(model, proxy):
            return model.generate(**inputs, **settings)

    return {
        "loop": lambda: generate(
            TransformersEngine(model, tok), prompts, params, options=LoopOptions(batch_size=batch)
        ),
        "loop, guided": lambda: generate(
            TransformersEngine(model, tok), prompts, params, guide=guide, options=LoopOptions(batch_size=batch)
        ),
        "generate": lambda: model.generate(**inputs, **settings),
        "generate, guided": guided_generate,
    }


def decode(model: Any, tok: Any, batch: int, size: Size) -> dict[str, Any]:
    """Tokens per second, and the ratios between the alternatives."""
    with torch.no_grad():
        seconds = medians(ways(model, tok, proxy_for(model), batch, size.new_tokens), size.repeats)
    speed = {name: batch * size.new_tokens / each for name, each in seconds.items()}
    return {
        "loop, guided / unguided": speed["loop, guided"] / speed["loop"],
        "generate, guided / unguided": speed["generate, guided"] / speed["generate"],
        "loop / generate": speed["loop"] / speed["generate"],
        "tokens a second": speed["loop, guided"],
    }


def optimisation_share(model: Any, tok: Any, folder: Path, size: Size, temperature: float) -> dict[str, Any]:
    """The seconds of optimisation as a share of the rollouts', and candidates per position."""
    text = tok.decode(list(range(10, 42)))
    args = ProxyConfig(
        output_dir=str(folder),
        max_new_tokens=size.new_tokens,
        temperature=temperature,
        per_device_train_batch_size=size.completions,
        num_iterations=2,
        max_steps=4,
        save_strategy="no",
        use_cpu=True,
        disable_tqdm=True,
        prompt_format="raw",
        logging_steps=2,
        overwrite_output_dir=True,
    )

    def reward(completion_ids: list[list[int]], **_: Any) -> list[float]:
        return [float(ids[0] % 2) for ids in completion_ids]

    for _ in range(2):  # the first optimiser step of a process imports parts of torch, for about a second
        trainer = ProxyTrainer(model, reward, args, Dataset.from_dict({"prompt": [text] * 64}), processing_class=tok)
        trainer.train()
    seconds = trainer.ledger.seconds
    logged = [line for line in trainer.state.log_history if "candidates" in line]
    return {
        "optimisation / rollout, %": 100 * seconds["optimise"] / seconds["rollout"],
        "candidates a position": statistics.mean(line["candidates"] for line in logged),
    }


def main() -> None:
    """Measure, write, print."""
    size = SMOKE if script_options(__doc__).smoke else FULL
    bases: dict[str, tuple[Any, Any, float]] = {}
    if (chat := small("chat-3m")) is not None:
        chat[0].generation_config.eos_token_id = chat[0].config.vocab_size - 1
        bases["chat-3m"] = (*chat, 1.0)
    bases["gpt2-124m"] = (random_gpt2_124m(), tokenizer(), RANDOM_TEMPERATURE)
    rows: dict[str, dict[str, float]] = {}
    for name, (model, tok, temperature) in bases.items():
        for batch in size.batches:
            rows[f"{name}, batch {batch}"] = decode(model, tok, batch, size)
        rows[f"{name}, training"] = optimisation_share(model, tok, Path("runs/speed"), size, temperature)
    for title, row in rows.items():
        print(f"{title:24}", {key: round(value, 3) for key, value in row.items()})
    if len(bases) == 2 and size is FULL:
        sizes = "chat-3m, 3.0 million parameters; a random GPT-2 of 124 million"
        facts = {"tokens": f"32 + {size.new_tokens}, fp32, sampled", "repeats": size.repeats}
        write_summary("speed", "FRUGALIGN_TRIALS=folder python -m experiments.speed", sizes, rows, facts)


if __name__ == "__main__":
    main()
