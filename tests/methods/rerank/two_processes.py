"""Not a test: samples, ranks and trains, on one process or as one of two."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from tests.two_layers import two_layers
from transformers import TrainerCallback

from frugalign.base.ledger import Ledger
from frugalign.engines.loading import load_model
from frugalign.methods.rerank.config import RerankConfig
from frugalign.methods.rerank.groups import sample_for
from frugalign.methods.rerank.trainer import RerankTrainer, TrackedReward
from frugalign.rewards.representation.network import RepresentationConfig, RepresentationModel
from frugalign.sandbox.cached import sample_pairs

OF: dict[str, dict[str, Any]] = {
    "lora": {"learning_rate": 1e-3, "reward_refresh_steps": 3},
    "proxy": {"train": "proxy", "resample": True},
}


def train(folder: Path, pairs_per_process: int, carrier: str, **sizes: Any) -> dict[str, Any]:
    """Three epochs on sampled groups; returns the first step's gradients and the weights.

    A LoRA's are ranked anew, and the probes follow. A proxy's are sampled anew.
    """
    loaded = load_model(two_layers(), **sizes)
    loaded.model.requires_grad_(False)
    probes = RepresentationModel(RepresentationConfig(width=loaded.model.config.hidden_size, layers=[1, 2]))
    torch.manual_seed(0)
    for parameter in probes.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    rows = sample_pairs("train", 16)
    args = RerankConfig(
        output_dir=str(folder),
        num_train_epochs=3,
        per_device_train_batch_size=pairs_per_process,
        max_grad_norm=1e9,
        sample=4,
        max_new_tokens=12,
        logging_steps=1,
        dataloader_drop_last=True,  # an incomplete last batch is filled up per process
        save_strategy="no",
        use_cpu=True,
        disable_tqdm=True,
        **OF[carrier],
    )
    if carrier == "proxy":
        args.cache_dir = str(folder / "cache")
    seen: dict[str, Any] = {}

    class Spy(TrainerCallback):
        def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if "gradients" not in seen:
                parameters = kwargs["model"].named_parameters()
                found = {name.removeprefix("module."): p.grad for name, p in parameters if p.grad is not None}
                seen["gradients"] = {name: grad.flatten().tolist() for name, grad in found.items()}

    groups = sample_for([row["prompt"] for row in rows], loaded.model, loaded.tokenizer, args, 0, Ledger())
    trainer = RerankTrainer(
        loaded.model,
        TrackedReward(probes, Dataset.from_list(rows)) if args.reward_refresh_steps else probes,
        args,
        groups,
        processing_class=loaded.tokenizer,
        callbacks=[Spy()],
    )
    trainer.train()
    policy: Any = trainer.accelerator.unwrap_model(trainer.model)
    seen["weights"] = {name: p.flatten().tolist() for name, p in policy.named_parameters() if p.requires_grad}
    seen["world_size"], seen["rank"] = trainer.accelerator.num_processes, trainer.accelerator.process_index
    assert trainer.probes is not None
    seen["probes"] = trainer.probes.weight.flatten().tolist()
    return seen


def rank(folder: Path, carrier: str, **sizes: Any) -> None:
    """One of two processes: half of the pairs, and what it saw in `rank-0.json` or `rank-1.json`. `sizes` spread the base."""
    seen = train(folder, 4, carrier, **sizes)
    assert seen["world_size"] == 2, f"{seen['world_size']} processes, not 2"
    (folder / f"rank-{seen['rank']}.json").write_text(json.dumps(seen))
