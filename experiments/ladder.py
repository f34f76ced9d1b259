"""Seconds and peak memory of one training step on bases of four sizes: proxy, TRL's RLOO in full, and RLOO with LoRA.

    FRUGALIGN_TRIALS=folder python -m experiments.ladder [--smoke]

The bases of 0.26 M and 3 M are models of the trials folder, or random ones of the same shape without it. Those of 30 M and 124 M are random.
Weights do not affect the cost. Every cell runs in its own process, so that its peak memory is measured alone. A step is one rollout of
32 + 64 tokens and its optimisation. The first step warms up and does not count. The floor is a process that only loads the libraries and the base.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from multiprocessing import get_context
from typing import Any

from datasets import Dataset
from experiments.bases import PROMPT_TOKENS, random_gpt2_124m, random_llama, random_llama_30m, small, tokenizer
from experiments.summary import script_options, write_summary
from transformers import TrainerCallback

from frugalign.base.ledger import Ledger

METHODS = ("floor", "proxy", "rloo", "rloo-lora")
RANDOM_TEMPERATURE = 0.11


@dataclass(frozen=True)
class Size:
    """`bases`, `completions` of a step and their `new_tokens`, and the `repeats` of a step."""

    bases: tuple[str, ...]
    completions: int
    new_tokens: int
    repeats: int


FULL = Size(("0.26M", "3M", "30M", "124M"), 16, 64, 3)
SMOKE = Size(("0.26M",), 8, 4, 1)


def base(name: str) -> tuple[Any, Any, float]:
    """Model, tokenizer, and the temperature at which the base has about as many candidates as a trained model."""
    if name in ("0.26M", "3M"):
        found = small("stories260k" if name == "0.26M" else "chat-3m")
        if found is not None:
            found[0].generation_config.eos_token_id = found[0].config.vocab_size - 1
            return (*found, 1.0)
        width, vocabulary = (64, 512) if name == "0.26M" else (192, 4096)
        return random_llama(width, vocabulary, layers=5), tokenizer(), RANDOM_TEMPERATURE
    model = random_llama_30m() if name == "30M" else random_gpt2_124m()
    return model, tokenizer(), RANDOM_TEMPERATURE


class _StepTimes(TrainerCallback):
    """The wall-clock time at the end of every optimiser step."""

    def __init__(self) -> None:
        self.at: list[float] = []

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.at.append(time.perf_counter())

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.at.append(time.perf_counter())


def _reward(completion_ids: list[list[int]], **_: Any) -> list[float]:
    return [float(ids[0] % 2) for ids in completion_ids]


def _prompts(tok: Any) -> Dataset:
    text = tok.decode(list(range(10, 10 + PROMPT_TOKENS)))
    return Dataset.from_dict({"prompt": [text] * 64})


def run_proxy(model: Any, tok: Any, temperature: float, size: Size, folder: str) -> list[float]:
    """Seconds of each proxy rollout with its optimisation."""
    from frugalign.methods.proxy_rlhf import ProxyConfig, ProxyTrainer

    args = ProxyConfig(
        output_dir=folder,
        max_new_tokens=size.new_tokens,
        temperature=temperature,
        per_device_train_batch_size=size.completions,
        num_generations=8,
        num_mini_batches=1,
        num_iterations=2,
        max_steps=2 * (size.repeats + 1),
        save_strategy="no",
        use_cpu=True,
        disable_tqdm=True,
        prompt_format="raw",
    )
    times = _StepTimes()
    ProxyTrainer(model, _reward, args, _prompts(tok), processing_class=tok, callbacks=[times]).train()
    # A rollout has two passes, each of one optimiser step.
    rollouts = times.at[:: args.steps_per_rollout]
    return [after - before for before, after in pairwise(rollouts[1:])]


def run_rloo(model: Any, tok: Any, lora: bool, size: Size, folder: str) -> list[float]:
    """Seconds of the same step by TRL's RLOOTrainer."""
    os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
    from peft import LoraConfig
    from trl import RLOOConfig, RLOOTrainer

    args = RLOOConfig(
        output_dir=folder,
        per_device_train_batch_size=size.completions,
        num_generations=8,
        max_completion_length=size.new_tokens,
        temperature=1.0,
        top_k=0,
        beta=0.05,
        max_steps=size.repeats + 1,
        bf16=False,
        gradient_checkpointing=False,
        use_cpu=True,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    # TRL loads its reference from the model's path.
    model.save_pretrained(f"{folder}/base")
    model.config._name_or_path = f"{folder}/base"
    model.requires_grad_(True)
    times = _StepTimes()
    RLOOTrainer(
        model=model,
        reward_funcs=_reward,
        args=args,
        train_dataset=_prompts(tok),
        processing_class=tok,
        peft_config=LoraConfig(r=16, target_modules="all-linear", task_type="CAUSAL_LM") if lora else None,
        callbacks=[times],
    ).train()
    return [after - before for before, after in pairwise(times.at[1:])]


def cell(name: str, method: str, size: Size) -> dict[str, Any]:
    """Measure one base and method in this process."""
    model, tok, temperature = base(name)
    with tempfile.TemporaryDirectory() as folder:
        if method == "floor":
            import peft  # noqa: F401
            import trl  # noqa: F401

            seconds = []
        elif method == "proxy":
            seconds = run_proxy(model, tok, temperature, size, folder)
        else:
            seconds = run_rloo(model, tok, method == "rloo-lora", size, folder)
    return {
        "seconds_per_step": round(statistics.median(seconds), 3) if seconds else None,
        "peak_memory_mb": Ledger().to_dict()["peak_memory_mb"],
        "base_parameters": model.num_parameters(),
    }


def row_of(cells: dict[str, dict[str, Any]]) -> dict[str, float]:
    """Seconds of each method, and its peak memory above the floor."""
    floor = cells["floor"]["peak_memory_mb"]
    row = {}
    for method, title in (("proxy", "proxy"), ("rloo", "RLOO"), ("rloo-lora", "RLOO + LoRA")):
        row[f"{title}, s"] = cells[method]["seconds_per_step"]
        row[f"{title}, MB"] = cells[method]["peak_memory_mb"] - floor
    return row


def main() -> None:
    """Measure every cell in its own process, write and print."""
    size = SMOKE if script_options(__doc__).smoke else FULL
    rows = {}
    for name in size.bases:
        cells = {}
        for method in METHODS:
            with ProcessPoolExecutor(1, get_context("spawn")) as process:
                cells[method] = process.submit(cell, name, method, size).result()
        rows[name] = row_of(cells)
        print(name, rows[name], flush=True)
    if size is FULL:
        step = f"{size.completions} completions of {PROMPT_TOKENS} + {size.new_tokens} tokens, fp32"
        sizes = "0.26, 3.0, 30.9 and 124 million parameters"
        write_summary("ladder", "FRUGALIGN_TRIALS=folder python -m experiments.ladder", sizes, rows, {"step": step})


if __name__ == "__main__":
    main()
