"""Tokens that a proxy samples until the exact reward reaches a mark: from nothing, and from a proxy that has learned from stored pairs.

    python -m experiments.pairs_then_reward [--smoke]

The sandbox, 1,000 pairs with correct labels or with a quarter of them flipped. A run ends when the mean reward of the last five rollouts reaches the
mark, or after a hundred rollouts.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from datasets import Dataset
from experiments.pairs_curve import load_sandbox
from experiments.pairs_data import SIZES, pairs_folder, read_rows
from experiments.proxy_objectives import MOST, ROLLOUTS, Reaching, mean
from experiments.summary import script_options, write_summary

from frugalign import sandbox
from frugalign.base.files import write_json_atomic
from frugalign.data import training_prompts
from frugalign.methods.proxy_rlhf.config import ProxyConfig
from frugalign.methods.proxy_rlhf.trainer import ProxyTrainer
from frugalign.methods.proxy_stored.config import StoredProxyConfig
from frugalign.methods.proxy_stored.trainer import StoredProxyTrainer
from frugalign.proxy.network import ProxyModel

WORK = Path("runs/pairs-then-reward")
SEEDS, MARK = (1, 2, 3), 1.25
STARTS: dict[str, float | None] = {"from nothing": None, "from clean pairs": 0.0, "from pairs, 25 % flipped": 0.25}
_FIXED: dict[str, Any] = {
    "max_new_tokens": 48,
    "save_strategy": "no",
    "report_to": "none",
    "disable_tqdm": True,
    "use_cpu": True,
    "overwrite_output_dir": True,
}


def from_pairs(noise: float, seed: int, work: Path, small: bool) -> ProxyModel:
    """A proxy with the default settings, trained on stored pairs."""
    data = pairs_folder(work / "data", noise, seed, {"train": 32, "validation": 8} if small else SIZES)
    parts = [Dataset.from_list(read_rows(data / f"{split}.jsonl")) for split in ("train", "validation")]
    args = StoredProxyConfig(
        output_dir=str(work / "pairs"), cache_dir=str(work / "features"), seed=seed, per_device_train_batch_size=16, **_FIXED
    )  # fmt: skip
    trainer = StoredProxyTrainer(load_sandbox(), args, *parts)
    trainer.train()
    found: ProxyModel = trainer.accelerator.unwrap_model(trainer.model)
    return found


def measured(proxy: ProxyModel | None, seed: int, work: Path, **more: Any) -> dict[str, Any]:
    """Train by the exact reward until the mark."""
    prompts, _, _ = training_prompts(sandbox.prompts, hold_out=False)
    args = ProxyConfig(output_dir=str(work / "reward"), target_kl=3, seed=seed, logging_steps=1, **_FIXED, **more)
    found = Reaching(MARK, MOST)
    trainer = ProxyTrainer(load_sandbox(), sandbox.gold, args, prompts, proxy=proxy, callbacks=[found])
    started = time.process_time()
    trainer.train()
    return {
        "reached": found.reached,
        "tokens sampled": trainer.ledger.generated_tokens,
        "rollouts": len(found.rewards),
        "reward of the first rollout": found.rewards[0],
        "reward at the end": mean(found.rewards[-ROLLOUTS:]),
        "KL, nats": mean(found.kls[-ROLLOUTS:]),
        "CPU seconds": time.process_time() - started,
    }


def main() -> None:
    is_smoke = script_options(__doc__).smoke
    work, more = (Path("runs/smoke/pairs-then-reward"), {"max_steps": 8}) if is_smoke else (WORK, {})
    rows: dict[str, dict[str, Any]] = {}
    for label, noise in STARTS.items():
        runs = []
        for seed in SEEDS[:1] if is_smoke else SEEDS:
            done = work / label.replace(" ", "-").replace(",", "") / f"{seed}.json"
            if is_smoke or not done.is_file():
                proxy = None if noise is None else from_pairs(noise, seed, work, is_smoke)
                write_json_atomic(done, measured(proxy, seed, work, **more))
            runs.append(json.loads(done.read_text("utf-8")))
            print(label, seed, runs[-1], flush=True)
        rows[label] = {name: mean([float(run[name]) for run in runs]) for name in runs[0]}
    if not is_smoke:
        model = "frugalign.sandbox:model, a Llama of 1.1 million parameters"
        facts = {"mark": MARK, "seeds": len(SEEDS), "reached": "the share of the seeds"}
        write_summary("pairs-then-reward", "python -m experiments.pairs_then_reward", model, rows, facts)


if __name__ == "__main__":
    main()
