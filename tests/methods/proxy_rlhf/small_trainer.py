"""Not a test: a small `ProxyTrainer` on four prompts."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset

from frugalign.engines.loading import LoadedModel
from frugalign.methods.proxy_rlhf import ProxyConfig, ProxyTrainer

ORDERS = ["I seek a draught to cure a fever.", "A poison, keeper.", "Good day. A balm for my horse.", "Curse him!"]


def dataset(**columns: list[Any]) -> Dataset:
    return Dataset.from_dict({"prompt": ORDERS} | columns)


def short(completions: list[Any], **_: Any) -> list[float]:
    return [-len(text) / 10 for text in completions]


def vowels(completions: list[Any], **_: Any) -> list[float]:
    return [float(sum(letter in "aeiou" for letter in text)) for text in completions]


def trainer(base: LoadedModel, folder: Path, reward: Any = short, data: Dataset | None = None, **options: Any) -> Any:
    """Four prompts, four completions each, two steps a rollout, four steps in all."""
    extra = {name: options.pop(name) for name in ("eval_dataset", "callbacks", "proxy") if name in options}
    given = {
        "max_steps": 4,
        "num_iterations": 1,
        "max_new_tokens": 8,
        "num_generations": 4,
        "per_device_train_batch_size": 16,
        "p_t": 1e-3,
        "logging_steps": 2,
        "disable_tqdm": True,
        "use_cpu": True,
    }
    args = ProxyConfig(output_dir=str(folder), **(given | options))
    data = data if data is not None else dataset()
    return ProxyTrainer(base.model, reward, args, data, processing_class=base.tokenizer, **extra)


def digest(model: torch.nn.Module) -> str:
    found = hashlib.sha256()
    for name, value in model.state_dict().items():
        found.update(name.encode() + value.numpy().tobytes())
    return found.hexdigest()
