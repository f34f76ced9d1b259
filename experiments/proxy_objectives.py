"""The proxy's objectives by what each needs to the same training reward, on stories and on the sandbox.

    FRUGALIGN_TRIALS=folder python -m experiments.proxy_objectives [--smoke]

Every run has default settings, also the bias at which a sequential objective starts, but for the length of a response and target_kl. It stops when
the mean reward of the last five rollouts reaches the mark, or after fifty rollouts. Seconds are the processor's in training, on one thread.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments import stories
from experiments.summary import script_options, write_summary
from transformers import TrainerCallback

from frugalign import sandbox
from frugalign.base.files import write_json_atomic
from frugalign.data import training_prompts
from frugalign.methods.proxy_rlhf.config import ProxyConfig
from frugalign.methods.proxy_rlhf.trainer import ProxyTrainer

WORK = Path("runs/proxy-objectives")
ROLLOUTS = 5
"""Rollouts whose mean reward is compared with the mark."""
MOST = 50
"""Rollouts after which a run that does not reach the mark is stopped."""
LINES = {"marginal": "marginal", "sequential, integrated": "sequential_integrated", "sequential": "sequential"}


@dataclass(frozen=True)
class Task:
    """A base, its prompts, a reward, the settings of its recipe, and the reward to reach."""

    model: Callable[[], str]
    prompts: Callable[[], str]
    reward: Any
    settings: dict[str, Any]
    mark: float


TASKS = {
    "stories": Task(
        stories.model,
        stories.prompts,
        stories.reward,
        {"max_new_tokens": 96, "target_kl": 14, "prompt_format": "raw"},
        mark=0.6,
    ),
    "sandbox": Task(
        lambda: sandbox.model, lambda: sandbox.prompts, sandbox.gold, {"max_new_tokens": 32, "target_kl": 5}, mark=1.0
    ),
}


class Reaching(TrainerCallback):
    """Records every rollout's mean reward, and stops at the mark."""

    def __init__(self, mark: float, most: int) -> None:
        self.mark, self.most, self.reached = mark, most, False
        self.rewards: list[float] = []
        self.kls: list[float] = []

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any) -> None:
        if logs is None or "reward" not in logs:
            return
        self.rewards.append(logs["reward"])
        self.kls.append(logs["kl"])
        if len(self.rewards) >= ROLLOUTS and mean(self.rewards[-ROLLOUTS:]) >= self.mark:
            self.reached = control.should_training_stop = True
        if len(self.rewards) >= self.most:
            control.should_training_stop = True


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def measured(task: Task, objective: str, folder: Path, most: int = MOST, **more: Any) -> dict[str, Any]:
    """Train until the mark. Returns the summary's columns; where the mark was not reached, they are those of all rollouts."""
    train, _, _ = training_prompts(task.prompts(), hold_out=False)
    fixed: dict[str, Any] = {
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
    }
    args = ProxyConfig(output_dir=str(folder), **fixed, **task.settings, objective=objective, **more)
    found = Reaching(task.mark, most)
    trainer = ProxyTrainer(task.model(), task.reward, args, train, callbacks=[found])
    started = time.process_time()
    trainer.train()
    seconds = time.process_time() - started
    costs, rollouts = trainer.ledger, len(found.rewards)
    return {
        "reached": found.reached,
        "rollouts": rollouts,
        "responses": costs.reward_calls,
        "tokens sampled": costs.generated_tokens,
        "CPU seconds": seconds,
        "rollout, seconds each": costs.seconds["rollout"] / rollouts,
        "optimise, seconds each": costs.seconds["optimise"] / rollouts,
        "reward": mean(found.rewards[-ROLLOUTS:]),
        "KL, nats": mean(found.kls[-ROLLOUTS:]),
        "KL of the untrained, nats": found.kls[0],
    }


def main() -> None:
    """Train every line on every task, write and print."""
    is_smoke = script_options(__doc__).smoke
    work, more = (Path("runs/smoke/proxy-objectives"), {"max_steps": 8}) if is_smoke else (WORK, {})
    rows: dict[str, dict[str, Any]] = {}
    for label, objective in LINES.items():
        for name, task in TASKS.items():
            folder = work / name / label.replace(", ", "-")
            done = folder / "measured.json"
            if is_smoke or not done.is_file():
                write_json_atomic(done, measured(task, objective, folder, **more))
            rows[f"{name}: {label}"] = json.loads(done.read_text("utf-8"))
            print(name, label, rows[f"{name}: {label}"], flush=True)
    if not is_smoke:
        command = "FRUGALIGN_TRIALS=folder python -m experiments.proxy_objectives"
        marks = {name: task.mark for name, task in TASKS.items()}
        write_summary("proxy-objectives", command, "stories260k, and frugalign.sandbox:model", rows, {"marks": marks})


if __name__ == "__main__":
    main()
