"""Guided against unguided decoding, our loop against `generate`, and what share of a rollout its optimisation takes.

    FRUGALIGN_TRIALS=folder python -m benchmarks.speed [--repeats 5] [--only chat-3m] [--batch 1 16 64]

32 prompt tokens, 128 new ones, sampled at T = 1, no row ending early. The four ways take turns within one process; figures are medians
and their ratios. `chat-3m` needs the trials folder, the random GPT-2 of 124 million parameters does not.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from benchmarks.bases import random_gpt2_124m, random_prompts, small, tokenizer
from datasets import Dataset

from frugalign.base.files import write_json_atomic
from frugalign.decoding import SamplingParams, generate
from frugalign.methods.proxy_rlhf import ProxyConfig, ProxyTrainer
from frugalign.proxy import attach
from frugalign.proxy.network import ProxyModel, new_proxy

RESULT = Path(__file__).parent / "results" / "speed.json"
NEW_TOKENS = 128
# At T = 1 a random GPT-2 is nearly uniform and leaves one candidate; at this temperature it leaves about as many as a trained model.
RANDOM_TEMPERATURE = 0.11


def proxy_for(model: Any) -> ProxyModel:
    """A default proxy with weights that do something."""
    proxy = new_proxy(model, {}, seed=0)
    with torch.no_grad():
        for parameter in proxy.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    return proxy


def ways(model: Any, tok: Any, proxy: ProxyModel, batch: int) -> dict[str, Callable[[], Any]]:
    """The four ways to decode one batch."""
    prompts = random_prompts(batch, min(model.config.vocab_size, len(tok)))
    ids = torch.tensor(prompts)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    settings = {"max_new_tokens": NEW_TOKENS, "min_new_tokens": NEW_TOKENS, "do_sample": True, "top_k": 0, "top_p": 1.0}
    params = SamplingParams(max_new_tokens=NEW_TOKENS)
    guide = proxy.guide(model)

    def guided_generate() -> Any:
        with attach(model, proxy):
            return model.generate(**inputs, **settings)

    return {
        "loop": lambda: generate(model, tok, prompts, params, batch_size=batch),
        "loop, guided": lambda: generate(model, tok, prompts, params, guide=guide, batch_size=batch),
        "generate": lambda: model.generate(**inputs, **settings),
        "generate, guided": guided_generate,
    }


def decode(model: Any, tok: Any, batch: int, repeats: int) -> dict[str, Any]:
    """Medians in tokens per second, and the ratios that matter."""
    proxy = proxy_for(model)
    found = ways(model, tok, proxy, batch)
    seconds: dict[str, list[float]] = {name: [] for name in found}
    for number in range(repeats + 1):
        # The order turns from round to round, so that no way always follows the same other one.
        names = list(found)[number % 4 :] + list(found)[: number % 4]
        for name in names:
            started = time.perf_counter()
            with torch.no_grad():
                found[name]()
            if number:  # the first round warms up
                seconds[name].append(time.perf_counter() - started)
    speed = {name: batch * NEW_TOKENS / statistics.median(values) for name, values in seconds.items()}
    return {
        "tokens_per_second": {name: round(value, 1) for name, value in speed.items()},
        "loop guided / unguided": round(speed["loop, guided"] / speed["loop"], 3),
        "generate guided / unguided": round(speed["generate, guided"] / speed["generate"], 3),
        "loop / generate": round(speed["loop"] / speed["generate"], 3),
        "loop guided / generate guided": round(speed["loop, guided"] / speed["generate, guided"], 3),
    }


def optimisation_share(model: Any, tok: Any, folder: Path, completions: int, temperature: float) -> dict[str, Any]:
    """Seconds of two rollouts and of the optimisation they feed."""
    text = tok.decode(list(range(10, 42)))
    args = ProxyConfig(
        output_dir=str(folder),
        max_new_tokens=NEW_TOKENS,
        temperature=temperature,
        per_device_train_batch_size=completions,
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
        "completions": completions,
        "candidates_per_position": round(statistics.mean(line["candidates"] for line in logged), 2),
        "rollout_seconds": round(seconds["rollout"], 2),
        "optimise_seconds": round(seconds["optimise"], 2),
        "optimise / rollout": round(seconds["optimise"] / seconds["rollout"], 4),
        "trainable_parameters": trainer.ledger.trainable_parameters,
    }


def main() -> None:
    """Measure, write, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--only", choices=("chat-3m", "gpt2-124m"))
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 16, 64])
    parser.add_argument("--output", type=Path, default=RESULT)
    options = parser.parse_args()
    # A base that is left out keeps what was measured before.
    result: dict[str, Any] = json.loads(options.output.read_text()) if options.output.is_file() else {}
    result |= {
        "command": "FRUGALIGN_TRIALS=folder python -m benchmarks.speed",
        "machine": f"{platform.machine()}, {torch.get_num_threads()} thread(s), torch {torch.__version__}",
        "tokens": "32 + 128, fp32, sampled",
    }
    bases: dict[str, tuple[Any, Any, float]] = {}
    chat = small("chat-3m")
    if chat is None:
        print("chat-3m is left out: FRUGALIGN_TRIALS names no trials folder.")
    elif options.only in (None, "chat-3m"):
        chat[0].generation_config.eos_token_id = chat[0].config.vocab_size - 1
        bases["chat-3m"] = (*chat, 1.0)
    if options.only in (None, "gpt2-124m"):
        bases["gpt2-124m"] = (random_gpt2_124m(), tokenizer(), RANDOM_TEMPERATURE)
    for name, (model, tok, temperature) in bases.items():
        result[name] = {"repeats": options.repeats}
        for batch in options.batch:
            result[name][f"batch {batch}"] = found = decode(model, tok, batch, options.repeats)
            print(name, "batch", batch, found, flush=True)
        share = optimisation_share(model, tok, Path("runs/speed"), 32, temperature)
        result[name]["optimisation"] = share
        print(name, "optimisation", share, flush=True)
        write_json_atomic(options.output, result)


if __name__ == "__main__":
    main()
