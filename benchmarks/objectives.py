"""The three objectives and lookahead on the stories task: samples and seconds until the same reward, each at its best bias.

    FRUGALIGN_TRIALS=folder python -m benchmarks.objectives

Setting and defaults as in `benchmarks.stories_proxy`; a run counts from the first rollout to the one where the mean reward of the last
five reaches the mark, where it ends; without it, at `MAX_STEPS`. For the sequential objectives an untrained overseer is not the base, and its `b` trades
that distance for rejections to learn from: three values each, the best one reported, all of them listed. A finished run
under runs/objectives is not done twice.
"""

from __future__ import annotations

import json
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from benchmarks.stories import prompts, reward
from benchmarks.trials import trials
from datasets import Dataset
from transformers import TrainerCallback

from frugalign.base.files import write_json_atomic
from frugalign.engines import load_model
from frugalign.methods.proxy_rlhf import ProxyConfig, ProxyTrainer
from frugalign.runs.folder import read_metrics

RESULT = Path(__file__).parent / "results" / "objectives.json"
WORK = Path("runs/objectives")
MARK = 0.4
WINDOW = 5
MAX_STEPS = 480


@dataclass(frozen=True)
class Variant:
    """One way to train, and its untrained overseer's bias."""

    name: str
    bias: float
    options: dict[str, Any]

    @property
    def folder(self) -> Path:
        return WORK / f"{self.name.replace(' ', '-')}-b{self.bias:g}"


VARIANTS = [
    Variant("marginal", 0.0, {"objective": "marginal"}),
    *(Variant("sequential", b, {"objective": "sequential"}) for b in (1.0, 2.0, 4.0)),
    *(Variant("sequential integrated", b, {"objective": "sequential_integrated"}) for b in (1.0, 2.0, 4.0)),
    Variant("marginal, lookahead", 0.0, {"objective": "marginal", "candidate_features": "lookahead"}),
]


class StopAtTheMark(TrainerCallback):
    """Ends the run where the moving mean reaches the mark: what comes after is not asked for."""

    def __init__(self) -> None:
        self.rewards: list[float] = []

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        if logs and "reward" in logs:
            self.rewards.append(logs["reward"])
            control.should_training_stop = len(self.rewards) >= WINDOW and sum(self.rewards[-WINDOW:]) / WINDOW >= MARK


def train(variant: Variant, base: str, train_prompts: list[str]) -> dict[str, Any]:
    """Train until `MAX_STEPS`, and read off when the mark was reached."""
    done = variant.folder / "reached.json"
    if done.is_file():
        found: dict[str, Any] = json.loads(done.read_text())
        return found
    args = ProxyConfig(
        output_dir=str(variant.folder),
        max_new_tokens=96,
        target_kl=14,
        initial_bias=variant.bias,
        max_steps=MAX_STEPS,
        logging_steps=4,
        overwrite_output_dir=True,
        save_strategy="no",
        disable_tqdm=True,
        use_cpu=True,
        **variant.options,
    )
    loaded = load_model(base)
    trainer = ProxyTrainer(
        loaded.model,
        reward,
        args,
        Dataset.from_dict({"prompt": train_prompts}),
        processing_class=loaded.tokenizer,
        callbacks=[StopAtTheMark()],
    )
    trainer.train()
    log = [line for line in read_metrics(variant.folder) if "reward" in line]
    found = reached(log, args, trainer.ledger.to_dict()["seconds"])
    found |= {"bias": variant.bias, "parameters": trainer.ledger.trainable_parameters}
    write_json_atomic(done, found)
    return found


def reached(log: list[dict[str, Any]], args: ProxyConfig, seconds: dict[str, float]) -> dict[str, Any]:
    """When the moving mean of the reward reached the mark; None where it did not. Seconds are those of all rollouts, in proportion."""
    rewards, kls = [line["reward"] for line in log], [line["kl"] for line in log]
    per_rollout = sum(seconds[name] for name in ("rollout", "reward", "optimise")) / len(log)
    moving = [sum(rewards[i - WINDOW : i]) / WINDOW for i in range(WINDOW, len(rewards) + 1)]
    first = next((i + WINDOW for i, value in enumerate(moving) if value >= MARK), None)
    return {
        "rollouts": first,
        "samples": None if first is None else first * args.per_device_train_batch_size,
        "seconds": None if first is None else round(first * per_rollout, 1),
        "kl_there": None if first is None else sum(kls[first - WINDOW : first]) / WINDOW,
        "last_reward": moving[-1],
        "last_kl": sum(kls[-WINDOW:]) / WINDOW,
        "untrained_reward": rewards[0],
        "untrained_kl": kls[0],
        "seconds_per_rollout": round(per_rollout, 3),
    }


def main() -> None:
    """Run what is missing, write and print the table."""
    base, (train_prompts, _) = str(trials() / "models" / "stories260k"), prompts(trials())
    runs: dict[str, list[dict[str, Any]]] = {}
    for variant in VARIANTS:
        runs.setdefault(variant.name, []).append(train(variant, base, train_prompts))
    best = {name: min(found, key=lambda run: run["samples"] or float("inf")) for name, found in runs.items()}
    write_json_atomic(
        RESULT,
        {
            "command": "FRUGALIGN_TRIALS=folder python -m benchmarks.objectives",
            "machine": f"{platform.machine()}, {torch.get_num_threads()} thread(s), torch {torch.__version__}",
            "mark": f"mean reward of {WINDOW} rollouts at least {MARK}, target_kl 14, seed 0",
            "best": best,
            "runs": runs,
        },
    )
    for name, run in best.items():
        print(f"{name:<24} b {run['bias']:g}: {run['samples']} samples, {run['seconds']} s; at the end {run['last_reward']:.2f} "
              f"at {run['last_kl']:.1f} nats")  # fmt: skip


if __name__ == "__main__":
    main()
