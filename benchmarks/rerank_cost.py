"""What re-ranking saves, as ratios in one run: rewards on states computed anyway against sampling as many responses, and a step beside DPO's.

    FRUGALIGN_TRIALS=folder python -m benchmarks.rerank_cost [--repeats 5]

(a) probes and confidence on the states of the loss's own forward pass, against sampling as many responses of the same length; (b) a
stand-alone pass that scores stored responses (forward, states, probes) against sampling them; both over lengths and model sizes, no row ending early. And
the time of a training step with moving confidence against the same step without, and against stock TRL. Ways take turns; figures are medians. `stories260k`
and `chat-3m` need the trials folder; the random Llama and GPT-2 do not.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from benchmarks.bases import random_gpt2_124m, random_llama_30m, random_prompts, small, tokenizer
from benchmarks.label_noise import stock_trainer
from datasets import Dataset

from frugalign.base.files import write_json_atomic
from frugalign.decoding import SamplingParams, generate
from frugalign.engines.loading import load_model
from frugalign.engines.states import endpoint_states, n_layers
from frugalign.methods.rerank.config import RerankConfig
from frugalign.methods.rerank.loss import pair_confidence
from frugalign.methods.rerank.trainer import RerankTrainer
from frugalign.rewards.representation.network import RepresentationConfig, RepresentationModel
from frugalign.sandbox.cached import sample_pairs

RESULT = Path(__file__).parent / "results" / "rerank_cost.json"
RESPONSES, LENGTHS = 64, (32, 128, 384)


def probes_for(model: Any) -> RepresentationModel:
    """Untrained probes on all layers: what they cost does not depend on what they say."""
    layers = list(range(1, n_layers(model) + 1))
    found = RepresentationModel(RepresentationConfig(width=model.config.hidden_size, layers=layers))
    torch.manual_seed(0)
    for parameter in found.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return found.eval().requires_grad_(False)


def medians(ways: dict[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """Median seconds of each way; they take turns, the first round warms up."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(repeats + 1):
        for name in list(ways)[number % len(ways) :] + list(ways)[: number % len(ways)]:
            started = time.perf_counter()
            ways[name]()
            if number:
                seconds[name].append(time.perf_counter() - started)
    return {name: statistics.median(values) for name, values in seconds.items()}


def scoring(model: Any, tok: Any, length: int, repeats: int) -> dict[str, float]:
    """(a) and (b) for one model and length."""
    vocabulary = min(model.config.vocab_size, len(tok))
    prompts = random_prompts(RESPONSES, vocabulary)
    answers = torch.randint(4, vocabulary - 1, (RESPONSES, length)).tolist()
    texts = [prompt + answer for prompt, answer in zip(prompts, answers, strict=True)]
    probes = probes_for(model)
    layers: list[int] = probes.config.layers
    states = endpoint_states(model, texts, layers)

    def confidence(found: torch.Tensor) -> torch.Tensor:
        return pair_confidence(*probes.calibrated(found).chunk(2))

    def sample() -> None:
        generate(model, tok, prompts, SamplingParams(length), batch_size=RESPONSES)

    def on_states() -> None:
        for _ in range(100):  # one is too short for the clock
            confidence(states)

    found = medians(
        {"sample": sample, "states": on_states, "pass": lambda: confidence(endpoint_states(model, texts, layers))},
        repeats,
    )
    found["states"] /= 100
    return {
        "sampling_seconds": found["sample"],
        "confidence_seconds": found["states"],
        "pass_seconds": found["pass"],
        "a": found["sample"] / found["states"],
        "b": found["sample"] / found["pass"],
    }


def step_time(folder: str, steps: int, repeats: int) -> dict[str, float]:
    """Seconds of a DPO step on the sandbox's model: stock TRL, our loss without probes, our loss with moving confidence."""
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
        loaded = load_model("frugalign.sandbox:model")
        loaded.model.requires_grad_(False)
        trainer = stock_trainer(loaded, rows, common, [])
        seconds["stock"].append(timed(trainer))

    def timed(trainer: Any) -> float:
        started = time.perf_counter()
        trainer.train()
        return (time.perf_counter() - started) / steps

    seconds: dict[str, list[float]] = {"stock": [], "constant": [], "pair": []}
    medians({"stock": stock, "constant": ours("constant"), "pair": ours("pair")}, repeats)
    found = {name: statistics.median(values[1:]) for name, values in seconds.items()}
    return {
        **{f"{name}_seconds": value for name, value in found.items()},
        "added_to_ours": found["pair"] / found["constant"] - 1,
        "added_to_stock": found["pair"] / found["stock"] - 1,
    }


def main() -> None:
    """Measure, write and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    repeats = parser.parse_args().repeats
    models: dict[str, tuple[Any, Any] | None] = {name: small(name) for name in ("stories260k", "chat-3m")}
    models |= {
        "random Llama 30M": (random_llama_30m(), tokenizer()),
        "random GPT-2 124M": (random_gpt2_124m(), tokenizer()),
    }
    ratios: dict[str, dict[str, Any]] = {}
    for name, found in models.items():
        if found is None:
            continue
        model, tok = found
        model.generation_config.eos_token_id = model.config.vocab_size - 1  # rows run to the full length
        ratios[name] = {"parameters": model.num_parameters()}
        heavy = model.num_parameters() > 1e7
        for length in LENGTHS[: 2 if heavy else None]:  # the longest takes a heavy model half an hour
            ratios[name][str(length)] = scoring(model, tok, length, 2 if heavy else repeats)
            print(name, length, {key: round(value, 5) for key, value in ratios[name][str(length)].items()}, flush=True)
    with tempfile.TemporaryDirectory() as folder:
        steps = step_time(folder, 10, repeats)
    print(steps)
    write_json_atomic(
        RESULT,
        {
            "command": "FRUGALIGN_TRIALS=folder python -m benchmarks.rerank_cost",
            "machine": f"{platform.machine()}, {torch.get_num_threads()} thread(s), torch {torch.__version__}",
            "responses": RESPONSES,
            "ratios": ratios,
            "step": steps,
        },
    )


if __name__ == "__main__":
    main()
