"""The default command of `frugalign proxy` on bases that differ: does it hold its KL, and does it learn?

    FRUGALIGN_TRIALS=folder python -m experiments.proxy_on_bases [--smoke] [--seed N] [BASE=TASK ...]

BASE is a folder, a hub id, or package.module:attribute. TASK is sandbox, stories or short_answers; it gives prompts, reward, response length and
target. The default is the sandbox's model and the two models of the trials folder. A finished run is not trained again.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments import short_answers, stories
from experiments.summary import estimate, script_options, write_summary
from experiments.trials import are_named, model_folder

from frugalign.base.json_files import read_json
from frugalign.runs.layout import read_log

WORK = Path("runs/proxy-on-bases")
LAST = 5
"""Rollouts over which the KL at the end is a mean."""


@dataclass(frozen=True)
class Task:
    """What a proxy learns: `prompts` returns a folder or a name, and `target` is in nats a response."""

    prompts: Callable[[], str]
    reward: str
    max_new_tokens: int
    target: float


def _short_prompts() -> str:
    folder = Path("runs/tasks/short-answers")
    if not (folder / "train.jsonl").is_file():
        short_answers.write(folder)
    return str(folder)


TASKS = {
    "sandbox": Task(lambda: "frugalign.sandbox:prompts", "frugalign.sandbox:learned", 32, 3.0),
    "stories": Task(stories.prompts, "experiments/stories.py:reward", 96, 14.0),
    "short_answers": Task(_short_prompts, "experiments/short_answers.py:reward", 64, 6.0),
}


def measured(base: str, task: Task, folder: Path, seed: int, smoke: bool) -> dict[str, Any]:
    """Train a proxy by the default command, unless that is done, and test it. Returns a row of the table."""
    from frugalign.evaluation import EvaluationSettings, evaluate
    from frugalign.methods.proxy_rlhf import ProxyConfig
    from frugalign.methods.proxy_rlhf.run import train_proxy
    from frugalign.policies.spec import PolicySpec

    if not (folder / "model.safetensors").is_file():
        smallest: dict[str, Any] = {"budget_tokens": 2_000} if smoke else {}
        config = ProxyConfig(
            model_name_or_path=base,
            dataset_name=task.prompts(),
            reward=[task.reward],
            target_kl=task.target,
            max_new_tokens=task.max_new_tokens,
            output_dir=str(folder),
            seed=seed,
            logging_steps=1,  # rounded up to every rollout
            overwrite_output_dir=True,
            **smallest,
        )
        train_proxy(config)
    settings = EvaluationSettings(split="test", num_samples=1 if smoke else 4)
    spec = PolicySpec(model_name_or_path=base, proxy=(str(folder),))
    test = evaluate(spec, task.prompts(), task.reward, settings, output_dir=folder / "test")
    costs = read_json(folder / "costs.json")
    kls = [line["kl_choice"] for line in read_log(folder) if "kl_choice" in line]
    return {
        "target": task.target,
        "kl_choice at the end": statistics.mean(kls[-LAST:]),
        "largest kl_choice": max(kls),
        "base": estimate(test["base_reward"]),
        "proxy": estimate(test["reward"]),
        "tokens": costs["generated_tokens"],
        "seconds": costs["wall_clock_seconds"],
    }


def main() -> None:
    """Measure every base, print each row and write them."""
    given = script_options(__doc__, bases={"nargs": "*", "metavar": "BASE=TASK"}, seed={"type": int, "default": 0})
    bases = given.bases or ["frugalign.sandbox:model=sandbox"]
    if not given.bases and are_named():
        bases += [f"{model_folder('stories260k')}=stories", f"{model_folder('chat-3m')}=short_answers"]
    rows: dict[str, dict[str, Any]] = {}
    for entry in bases:
        base, _, task = entry.rpartition("=")
        name = f"{base.rstrip('/').rpartition('/')[-1]}, {task}"
        folder = (Path("runs/smoke") / WORK.name if given.smoke else WORK) / f"{name.replace(', ', '-')}-{given.seed}"
        rows[name] = measured(base, TASKS[task], folder, given.seed, given.smoke)
        print(json.dumps({name: rows[name]}), flush=True)
    if not given.smoke:
        command = "FRUGALIGN_TRIALS=folder python -m experiments.proxy_on_bases BASE=TASK ..."
        write_summary("proxy-on-bases", command, "0.26 to 135 million parameters", rows, {"seed": given.seed})


if __name__ == "__main__":
    main()
