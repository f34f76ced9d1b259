"""Not a test: a small `StoredProxyTrainer` on eight pairs of the sandbox."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import TrainerCallback

from frugalign.engines.loading import LoadedModel
from frugalign.methods.proxy_stored import StoredProxyConfig, StoredProxyTrainer
from frugalign.sandbox.cached import sample_pairs


def pairs(n: int = 8, first: int = 0, **columns: list[Any]) -> Dataset:
    rows = sample_pairs("train", first + n)[first:]
    return Dataset.from_dict({name: [row[name] for row in rows] for name in ("prompt", "chosen", "rejected")} | columns)


def demonstrations(n: int = 8, first: int = 0, **columns: list[Any]) -> Dataset:
    rows = pairs(n, first)
    return Dataset.from_dict({"prompt": rows["prompt"][:], "completion": rows["chosen"][:]} | columns)


def trainer(
    base: LoadedModel, folder: Path, data: Dataset | None = None, validation: Dataset | None = None, **options: Any
) -> StoredProxyTrainer:
    """Four pairs a step. The cache is shared by the runs of a test."""
    extra = {name: options.pop(name) for name in ("callbacks", "proxy") if name in options}
    given = {
        "max_steps": 4,
        "per_device_train_batch_size": 4,
        "logging_steps": 1,
        "eval_steps": 1,
        "save_strategy": "no",
        "cache_dir": str(folder.parent / "features"),
        "disable_tqdm": True,
        "use_cpu": True,
        "max_grad_norm": 1e9,
        "lr_scheduler_type": "constant",
    }
    args = StoredProxyConfig(output_dir=str(folder), **(given | options))
    data = pairs() if data is None else data
    return StoredProxyTrainer(base.model, args, data, validation, processing_class=base.tokenizer, **extra)


class Gradients(TrainerCallback):
    """Keeps the gradients of every step."""

    def __init__(self) -> None:
        self.steps: list[dict[str, torch.Tensor]] = []

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        named = kwargs["model"].named_parameters()
        self.steps.append(
            {name.removeprefix("module."): each.grad.clone() for name, each in named if each.grad is not None}
        )


def weights(found: StoredProxyTrainer) -> dict[str, torch.Tensor]:
    proxy: Any = found.accelerator.unwrap_model(found.model)
    return {name: value.clone() for name, value in proxy.state_dict().items()}
