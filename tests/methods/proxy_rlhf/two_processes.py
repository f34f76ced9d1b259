"""Not a test: trains a proxy, on one process or as one of two, and returns what a test compares."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from datasets import Dataset
from tests.two_layers import two_layers
from transformers import TrainerCallback

from frugalign.engines.fingerprints import fingerprint
from frugalign.engines.loading import load_model
from frugalign.methods.proxy_rlhf import ProxyConfig, ProxyTrainer

ORDERS = [
    f"{who} I seek a {what}." for who in ("Keeper!", "Good day.", "Quick,") for what in ("balm", "poison", "draught")
]


def short(completions: list[str], **_: Any) -> list[float]:
    return [-len(text) / 10 for text in completions]


def settings(folder: Path, completions: int, seed: int = 0) -> dict[str, Any]:
    """Twenty steps, two a rollout, sixteen completions a rollout over all processes."""
    return {
        "output_dir": str(folder),
        "max_steps": 20,
        "num_iterations": 1,
        "max_new_tokens": 8,
        "num_generations": 4,
        "per_device_train_batch_size": completions,
        "p_t": 1e-3,
        "logging_steps": 2,
        "save_steps": 20,
        "disable_tqdm": True,
        "use_cpu": True,
        "seed": seed,
    }


def train(
    folder: Path, completions: int, seed: int = 0, model: Any = None, resume: Path | None = None, **options: Any
) -> dict[str, Any]:
    """Train; returns this process's completions of the first round and the gradients of the first step."""
    seen: dict[str, Any] = {}

    def reward(prompts: list[str], completions: list[str], **_: Any) -> list[float]:
        seen.setdefault("rollout", list(zip(prompts, completions, strict=True)))
        return short(completions)

    class Spy(TrainerCallback):
        def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if "gradients" not in seen:
                parameters = kwargs["model"].named_parameters()
                seen["gradients"] = {
                    name.removeprefix("module."): p.grad.flatten().tolist()
                    for name, p in parameters
                    if p.grad is not None
                }

    args = ProxyConfig(**(settings(folder, completions, seed) | {"max_grad_norm": 1e9} | options))
    trainer = ProxyTrainer(
        model or two_layers(), reward, args, Dataset.from_dict({"prompt": ORDERS}), callbacks=[Spy()]
    )
    trainer.train(None if resume is None else str(resume))
    seen["evaluation"] = trainer.evaluate(Dataset.from_dict({"prompt": ORDERS[:1]}))
    seen["world_size"] = trainer.accelerator.num_processes
    seen["rank"] = trainer.accelerator.process_index
    seen["weights"] = {
        name: value.flatten().tolist()
        for name, value in trainer.accelerator.unwrap_model(trainer.model).state_dict().items()
    }
    return seen


def rank(folder: Path) -> None:
    """One of two processes: half of the completions, and what it saw in `rank-0.json` or `rank-1.json`."""
    seen = train(folder, completions=8)
    assert seen["world_size"] == 2, f"{seen['world_size']} processes, not 2"
    (folder / f"rank-{seen['rank']}.json").write_text(json.dumps(seen))


def spread_rank(folder: Path, size: str, completions: int) -> None:
    """One of two processes that hold the base together; `size` says how. It trains, and again from the middle."""
    base = load_model(two_layers(), **{size: 2})  # type: ignore[arg-type]
    seen = train(folder, completions, model=base, save_steps=10)
    seen["base"] = fingerprint(base.model, base.tokenizer, name=base.name).to_dict()
    resumed = train(folder, completions, model=base, save_steps=10, resume=folder / "checkpoint-10")
    seen["resumed"] = resumed["weights"]
    (folder / f"rank-{seen['rank']}.json").write_text(json.dumps(seen))
