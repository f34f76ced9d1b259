"""Rollouts by one worker on Ray and by two: tokens a second, bytes that travel, and the part of a round that does not get faster.

    FRUGALIGN_TRIALS=folder python -m experiments.scaling [--workers 2] [--only BASE] [--smoke]

Each worker has a process of its own. A round is a rollout in pieces of 16 responses of 128 tokens, its scores, and its optimiser steps. All
sizes of the pool train the same proxy, bit by bit. Numbers are medians over rounds, without the first. `chat-3m` needs the trials folder, the
random GPT-2 of 124 million parameters does not.
"""

from __future__ import annotations

import os
import statistics
import time
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from datasets import Dataset
from experiments.bases import random_gpt2_124m, small, tokenizer
from experiments.speed import RANDOM_TEMPERATURE
from experiments.summary import script_options, write_summary
from transformers import TrainerCallback

from frugalign import sandbox
from frugalign.base.wording import pluralize
from frugalign.engines.loading import load_model
from frugalign.methods.proxy_rlhf import ProxyConfig, ProxyTrainer

GROUP = 8
WIDTHS = {"7 B": 4096, "70 B": 8192}
"""Hidden widths of Llama models."""


@dataclass(frozen=True)
class Size:
    """`new_tokens` of a response, `completions` of a rollout, `piece` of them for a worker at a time, and measured `rounds`."""

    new_tokens: int
    completions: int
    piece: int
    rounds: int


FULL = Size(128, 128, 16, 5)
SMOKE = Size(4, 32, 16, 1)


@dataclass
class Rounds(TrainerCallback):
    """The time, the ledger's counts and seconds, and the pool's traffic at the end of every round."""

    trainer: Any = None
    ends: list[dict[str, float]] = field(default_factory=list)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step % args.steps_per_rollout == 0:
            ledger, moved = self.trainer.ledger, self.trainer.rollouts.pool.traffic
            now = {"round": time.perf_counter(), "tokens": float(ledger.generated_tokens)}
            self.ends.append(now | ledger.seconds | {name: float(value) for name, value in vars(moved).items()})

    def medians(self) -> dict[str, float]:
        """Of each number, what a round adds to it."""
        pairs = list(zip(self.ends, self.ends[1:], strict=False))
        return {name: statistics.median(end[name] - before[name] for before, end in pairs) for name in self.ends[-1]}


def train(base: str, folder: Path, size: Size, temperature: float, **ray: Any) -> tuple[dict[str, float], float]:
    """The medians of a training's rounds, and the candidates of a position."""
    rounds, prompt = Rounds(), "Good day, keeper. I seek a balm for my horse, and a draught to cure a fever."
    args = ProxyConfig(
        output_dir=str(folder),
        overwrite_output_dir=True,
        max_new_tokens=size.new_tokens,
        temperature=temperature,
        num_generations=GROUP,
        per_device_train_batch_size=size.completions,
        sampling_batch_size=size.piece,
        num_iterations=2,
        max_steps=4 * (size.rounds + 1),
        num_train_epochs=1000,
        logging_steps=4,
        save_strategy="no",
        use_cpu=True,
        disable_tqdm=True,
        prompt_format="raw",
        **ray,
    )

    def reward(completion_ids: list[list[int]], **_: Any) -> list[float]:
        return [sum(token % 2 for token in ids) / len(ids) for ids in completion_ids]

    data = Dataset.from_dict({"prompt": [f"{number}. {prompt}" for number in range(size.completions // GROUP)]})
    trainer = ProxyTrainer(load_model(base), reward, args, data, callbacks=[rounds])
    rounds.trainer = trainer
    if ray:
        trainer.rollouts.pool.wait()  # type: ignore[attr-defined]
    trainer.train()
    trainer.rollouts.pool.close()
    logged = [line["candidates"] for line in trainer.state.log_history if "candidates" in line]
    return rounds.medians(), statistics.mean(logged)


def row_of(found: dict[str, float], one: dict[str, float] | None) -> dict[str, float | None]:
    """A row of the table. `one`: what one worker took."""
    others = found["round"] - found["rollout"]
    return {
        "tokens a second": found["tokens"] / found["rollout"],
        "rollout, s": found["rollout"],
        "the rest, s": others,
        "speed-up of rollouts": None if one is None else one["rollout"] / found["rollout"],
        "speed-up of a round": None if one is None else one["round"] / found["round"],
        "kB broadcast a round": found["broadcast"] / 1000,
        "kB sent a round": found["sent"] / 1000,
        "kB returned a round": found["returned"] / 1000,
        "bytes returned a token": found["returned"] / found["tokens"],
    }


def counted(candidates: float) -> dict[str, dict[str, float | None]]:
    """Bytes that a decided token returns at larger widths: its state in bfloat16, its candidates, and what is fixed."""
    each = 4 + 4 + 1  # id, log-probability, mask
    return {
        f"{name}, counted": {"bytes returned a token": width * 2 + candidates * each + 24}
        for name, width in WIDTHS.items()
    }


def bases(place: Path, *, smoke: bool) -> dict[str, tuple[str, float]]:
    """Folders of the measured models, which workers load by name, and the temperatures. They practically never end a response early."""
    if smoke:
        return {"sandbox": (str(sandbox.model), 1.0)}
    found = {"gpt2-124m": (random_gpt2_124m(), tokenizer(), RANDOM_TEMPERATURE)}
    if (chat := small("chat-3m")) is not None:
        chat[0].generation_config.eos_token_id = chat[0].config.vocab_size - 1
        found = {"chat-3m": (*chat, 1.0), **found}
    for name, (model, tok, _) in found.items():
        model.save_pretrained(place / name)
        tok.save_pretrained(place / name)
    return {name: (str(place / name), temperature) for name, (_, _, temperature) in found.items()}


def main() -> None:
    """Measure, print, write."""
    given = script_options(
        __doc__,
        workers={"type": int, "default": 2, "help": "The most workers."},
        only={"help": "chat-3m or gpt2-124m, which takes half an hour. Default: both."},
    )
    size = SMOKE if given.smoke else FULL
    rows: dict[str, dict[str, float | None]] = {}
    facts: dict[str, Any] = {
        "tokens": f"{size.completions} responses of {size.new_tokens} tokens, pieces of {size.piece}"
    }
    with TemporaryDirectory() as place:
        for name, (folder, temperature) in bases(Path(place), smoke=given.smoke).items():
            if given.only not in (None, name):
                continue
            runs = Path(place) / "runs"
            here, candidates = train(folder, runs, size, temperature)
            rows[f"{name}, this process"] = row_of(here, None)
            one: dict[str, float] | None = None
            for n in range(1, given.workers + 1):
                ray = {"ray": "local", "ray_workers": n, "ray_cpus": (os.cpu_count() or 1) / given.workers}
                found, _ = train(folder, runs, size, temperature, **ray)
                one = one or found
                rows[f"{name}, {pluralize(n, 'worker')}"] = row_of(found, one)
            assert one is not None
            serial = (one["round"] - one["rollout"]) / one["round"]
            facts[f"{name}, share of a round that is not parallel"] = serial
            facts[f"{name}, largest speed-up by Amdahl"] = 1 / serial
            facts[f"{name}, candidates a position"] = candidates
    rows |= counted(candidates)
    for title, row in rows.items():
        print(f"{title:24}", {key: None if value is None else round(value, 3) for key, value in row.items()})
    for title, value in facts.items():
        print(f"{title}: {value}")
    if size is FULL:
        sizes = {"chat-3m": "chat-3m, 3.0 million parameters", "gpt2-124m": "a random GPT-2 of 124 million parameters"}
        measured = [sizes[name] for name in sizes if given.only in (None, name)]
        command = "FRUGALIGN_TRIALS=folder python -m experiments.scaling" + (
            f" --only {given.only}" if given.only else ""
        )
        write_summary("scaling", command, "; ".join(measured), rows, facts)


if __name__ == "__main__":
    main()
