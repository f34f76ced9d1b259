"""The saving from re-ranking: scoring responses against sampling them, and a training step against DPO's.

    FRUGALIGN_TRIALS=folder python -m experiments.rerank_cost [--smoke]

Two costs are compared with sampling as many responses of the same length. (a) is probes and confidence on the states of the loss's own forward
pass. (b) is a separate pass that scores stored responses. Both vary over lengths and model sizes, and no row ends early. A training step with
moving confidence is compared with the same step without it, and with TRL's. Alternatives take turns, and results are medians. `stories260k` and
`chat-3m` need the trials folder, the random Llama and GPT-2 do not.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from datasets import Dataset
from experiments.bases import random_gpt2_124m, random_llama_30m, random_prompts, small, tokenizer
from experiments.summary import script_options, write_summary
from experiments.timing import medians
from peft import LoraConfig

from frugalign.decoding import SamplingParams, generate
from frugalign.decoding.loop import LoopOptions
from frugalign.engines.loading import load_model
from frugalign.engines.states import endpoint_states, n_layers
from frugalign.engines.transformers import TransformersEngine
from frugalign.methods.confidence import pair_confidence
from frugalign.methods.rerank.config import RerankConfig
from frugalign.methods.rerank.trainer import RerankTrainer
from frugalign.rewards.representation.network import RepresentationConfig, RepresentationModel
from frugalign.sandbox.cached import sample_pairs


@dataclass(frozen=True)
class Size:
    """`responses` of each of the `lengths` in tokens, `repeats`, and optimiser `steps` of a training."""

    responses: int
    lengths: tuple[int, ...]
    repeats: int
    steps: int


FULL = Size(64, (32, 128, 384), 5, 10)
SMOKE = Size(4, (4,), 1, 2)


def probes_for(model: Any) -> RepresentationModel:
    """Random probes on all layers: their cost does not depend on their weights."""
    layers = list(range(1, n_layers(model) + 1))
    found = RepresentationModel(RepresentationConfig(width=model.config.hidden_size, layers=layers))
    torch.manual_seed(0)
    for parameter in found.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return found.eval().requires_grad_(False)


def scoring(model: Any, tok: Any, length: int, responses: int, repeats: int) -> dict[str, float]:
    """(a) and (b) for one model and length in tokens."""
    vocabulary = min(model.config.vocab_size, len(tok))
    prompts = random_prompts(responses, vocabulary)
    answers = torch.randint(4, vocabulary - 1, (responses, length)).tolist()
    texts = [prompt + answer for prompt, answer in zip(prompts, answers, strict=True)]
    probes = probes_for(model)
    layers: list[int] = probes.config.layers
    states = endpoint_states(model, texts, layers)

    def confidence(found: torch.Tensor) -> torch.Tensor:
        return pair_confidence(*probes.calibrated(found).chunk(2))

    def sample() -> None:
        generate(
            TransformersEngine(model, tok), prompts, SamplingParams(length), options=LoopOptions(batch_size=responses)
        )

    def on_states() -> None:
        for _ in range(100):  # one is too short for the clock
            confidence(states)

    found = medians(
        {"sample": sample, "states": on_states, "pass": lambda: confidence(endpoint_states(model, texts, layers))},
        repeats,
    )
    found["states"] /= 100
    return {
        "sampling, s": found["sample"],
        "confidence, ms": 1000 * found["states"],
        "a pass, s": found["pass"],
        "sampling / confidence": found["sample"] / found["states"],
        "sampling / pass": found["sample"] / found["pass"],
    }


def step_time(folder: str, steps: int, repeats: int) -> dict[str, float]:
    """Seconds of a DPO step on the sandbox's model: TRL's, ours without probes, and ours with moving confidence."""
    rows = sample_pairs("train", 16 * steps)
    common: dict[str, Any] = {
        "output_dir": folder,
        "per_device_train_batch_size": 16,
        "max_steps": steps,
        "logging_steps": steps,
        "learning_rate": 1e-4,
        "use_cpu": True,
        "disable_tqdm": True,
    }

    def ours(kind: str) -> Callable[[], None]:
        def run() -> None:
            loaded = load_model("frugalign.sandbox:model")
            loaded.model.requires_grad_(False)
            args = RerankConfig(overwrite_output_dir=True, confidence=kind, save_strategy="no", **common)
            probes = probes_for(loaded.model) if kind == "pair" else None
            trainer = RerankTrainer(
                loaded.model, probes, args, Dataset.from_list(rows), processing_class=loaded.tokenizer
            )
            seconds[kind].append(timed(trainer))

        return run

    def stock() -> None:
        from trl import DPOConfig, DPOTrainer

        loaded = load_model("frugalign.sandbox:model")
        loaded.model.requires_grad_(False)
        roles = {"prompt": "user", "chosen": "assistant", "rejected": "assistant"}
        data = [{key: [{"role": role, "content": row[key]}] for key, role in roles.items()} for row in rows]
        args = DPOConfig(bf16=False, gradient_checkpointing=False, report_to="none", save_strategy="no", **common)
        lora = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
        trainer = DPOTrainer(
            loaded.model,
            args=args,
            train_dataset=Dataset.from_list(data),
            processing_class=loaded.tokenizer,
            peft_config=lora,
        )
        seconds["stock"].append(timed(trainer))

    def timed(trainer: Any) -> float:
        started = time.perf_counter()
        trainer.train()
        return (time.perf_counter() - started) / steps

    seconds: dict[str, list[float]] = {"stock": [], "constant": [], "pair": []}
    medians({"stock": stock, "constant": ours("constant"), "pair": ours("pair")}, repeats)
    found = {name: statistics.median(values[1:]) for name, values in seconds.items()}
    return {
        "stock TRL, s": found["stock"],
        "ours, constant, s": found["constant"],
        "ours, moving, s": found["pair"],
        "added to ours, %": 100 * (found["pair"] / found["constant"] - 1),
        "added to TRL, %": 100 * (found["pair"] / found["stock"] - 1),
    }


def main() -> None:
    """Measure, write and print."""
    size = SMOKE if script_options(__doc__).smoke else FULL
    models: dict[str, tuple[Any, Any] | None] = {name: small(name) for name in ("stories260k", "chat-3m")}
    models |= {
        "random Llama 30M": (random_llama_30m(), tokenizer()),
        "random GPT-2 124M": (random_gpt2_124m(), tokenizer()),
    }
    rows: dict[str, dict[str, float]] = {}
    for name, found in models.items():
        if found is None:
            continue
        model, tok = found
        model.generation_config.eos_token_id = model.config.vocab_size - 1  # rows run to the full length
        heavy = model.num_parameters() > 1e7
        for length in size.lengths[: 2 if heavy else None]:  # the longest takes a heavy model half an hour
            repeats = min(2, size.repeats) if heavy else size.repeats
            rows[f"{name}, {length} tokens"] = scoring(model, tok, length, size.responses, repeats)
            print(name, length, rows[f"{name}, {length} tokens"], flush=True)
    with tempfile.TemporaryDirectory() as folder:
        rows["training step"] = step_time(folder, size.steps, size.repeats)
    print(rows["training step"])
    if size is FULL:
        command = "FRUGALIGN_TRIALS=folder python -m experiments.rerank_cost"
        facts = {"responses": size.responses}
        write_summary("rerank-cost", command, "0.26, 3.0, 30.9 and 124 million parameters", rows, facts)


if __name__ == "__main__":
    main()
