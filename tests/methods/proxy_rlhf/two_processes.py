"""Not a test: `torchrun --nproc_per_node 2 two_processes.py FOLDER` trains on two processes and leaves what a test compares.

`settings` and `Spy` are shared with the test, which runs them on one process.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

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


def train(folder: Path, completions: int, seed: int = 0) -> dict[str, Any]:
    """Train; returns this process's completions of the first round and the gradients of the first step."""
    import torch
    from datasets import Dataset
    from transformers import TrainerCallback

    import frugalign.sandbox as sandbox
    from frugalign.methods.proxy_rlhf import ProxyConfig, ProxyTrainer

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

    args = ProxyConfig(**(settings(folder, completions, seed) | {"max_grad_norm": 1e9}))
    trainer = ProxyTrainer(sandbox.model, reward, args, Dataset.from_dict({"prompt": ORDERS}), callbacks=[Spy()])
    trainer.train()
    seen["evaluation"] = trainer.evaluate(Dataset.from_dict({"prompt": ORDERS[:1]}))
    seen["world_size"] = trainer.accelerator.num_processes
    seen["rank"] = trainer.accelerator.process_index
    seen["weights"] = {
        name: value.flatten().tolist()
        for name, value in trainer.accelerator.unwrap_model(trainer.model).state_dict().items()
    }
    assert torch.is_grad_enabled()
    return seen


def main() -> None:
    import torch

    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    seen = train(folder, completions=8)
    assert seen["world_size"] == 2, f"{seen['world_size']} processes, not 2"
    (folder / f"rank-{seen['rank']}.json").write_text(json.dumps(seen))


if __name__ == "__main__":
    main()
