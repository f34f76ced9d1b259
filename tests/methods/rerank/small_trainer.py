"""Not a test: a small `RerankTrainer` on the sandbox's model and eight of its pairs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from tests.two_layers import two_layers

from frugalign.engines.loading import load_model
from frugalign.methods.rerank.config import RerankConfig
from frugalign.methods.rerank.trainer import RerankTrainer
from frugalign.rewards.representation.network import RepresentationConfig, RepresentationModel
from frugalign.sandbox.cached import sample_pairs


def probes(scale: float = 1.0) -> RepresentationModel:
    model = load_model(two_layers()).model
    found = RepresentationModel(RepresentationConfig(width=model.config.hidden_size, layers=[1, 2]))
    torch.manual_seed(0)
    for parameter in found.parameters():
        torch.nn.init.normal_(parameter, std=0.2 * scale)
    return found


def trainer(
    folder: Path, reward: Any = None, columns: dict[str, list[Any]] | None = None, held_out: int = 0, **options: Any
) -> RerankTrainer:
    """On eight pairs, with `held_out` others to evaluate on."""
    given = {
        "max_steps": 2,
        "per_device_train_batch_size": 4,
        "logging_steps": 1,
        "use_cpu": True,
        "disable_tqdm": True,
        "save_strategy": "no",
    }
    if reward is None:
        given["confidence"] = "constant"
    args = RerankConfig(output_dir=str(folder), **(given | options))
    rows = sample_pairs("train", 8)
    data = Dataset.from_dict(
        {name: [row[name] for row in rows] for name in ("prompt", "chosen", "rejected")} | (columns or {})
    )
    loaded = load_model(two_layers())
    loaded.model.requires_grad_(True)
    watched = Dataset.from_list(sample_pairs("train", 8 + held_out)[8:]) if held_out else None
    return RerankTrainer(loaded.model, reward, args, data, watched, processing_class=loaded.tokenizer)


def batch_of(found: RerankTrainer) -> dict[str, Any]:
    inputs: dict[str, Any] = next(iter(found.get_train_dataloader()))
    return inputs


def perturb(found: Any) -> None:
    """A LoRA that does something, the same one each time; without a LoRA, every weight a tenth off."""
    torch.manual_seed(1)
    named = list(found.model.named_parameters())
    lora = [parameter for name, parameter in named if "lora_B" in name]
    with torch.no_grad():
        for parameter in lora or [parameter for _, parameter in named]:
            parameter.copy_(
                torch.randn_like(parameter) * 0.02 if lora else parameter * (1 + 0.1 * torch.randn_like(parameter))
            )
