"""The default command of `frugalign proxy` on bases that differ: does it hold its KL, and does it learn?

    FRUGALIGN_TRIALS=folder python -m experiments.proxy_on_bases [--smoke] [--seed N] [--budget_tokens N] [BASE=TASK ...]

BASE is a folder, a hub id, or package.module:attribute. TASK is sandbox, stories or short_answers; it gives prompts, reward, response length and
target. The default is the sandbox's model and the two models of the trials folder. What is finished is not run again, and bases that are not named
keep their rows.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments import short_answers, stories
from experiments.summary import RESULTS, estimate, script_options, write_summary
from experiments.trials import are_named, model_folder

from frugalign.base.json_files import read_json
from frugalign.runs.layout import read_log

WORK = Path("runs/proxy-on-bases")
LAST = 5
"""Rollouts over which the KL at the end is a mean."""


@dataclass(frozen=True)
class Task:
    """What a proxy learns: `prompts` returns a folder or a name, `target` is in nats a response, and `samples` are of each test prompt."""

    prompts: Callable[[], str]
    reward: str
    max_new_tokens: int
    target: float
    samples: int


TASKS = {
    "sandbox": Task(lambda: "frugalign.sandbox:prompts", "frugalign.sandbox:learned", 32, 3.0, 1),
    "stories": Task(stories.prompts, "experiments/stories.py:reward", 96, 14.0, 4),
    "short_answers": Task(short_answers.prompts, "experiments/short_answers.py:reward", 64, 6.0, 1),
}


def measured(base: str, task: Task, folder: Path, seed: int, budget: int | None) -> dict[str, Any]:
    """Train a proxy by the default command and test it, unless that is done. Returns a row of the table."""
    from frugalign.evaluation import EvaluationSettings, evaluate
    from frugalign.methods.proxy_rlhf import ProxyConfig
    from frugalign.methods.proxy_rlhf.run import train_proxy
    from frugalign.policies.spec import PolicySpec

    if not (folder / "model.safetensors").is_file():
        config = ProxyConfig(
            model_name_or_path=base,
            dataset_name=task.prompts(),
            reward=[task.reward],
            target_kl=task.target,
            max_new_tokens=task.max_new_tokens,
            output_dir=str(folder),
            seed=seed,
            budget_tokens=budget,
            logging_steps=1,  # rounded up to every rollout
            overwrite_output_dir=True,
        )
        train_proxy(config)
    if not (folder / "test" / "metrics.json").is_file():
        settings = EvaluationSettings(split="test", num_samples=task.samples)
        spec = PolicySpec(model_name_or_path=base, proxy=(str(folder),))
        evaluate(spec, task.prompts(), task.reward, settings, output_dir=folder / "test")
    test = read_json(folder / "test" / "metrics.json")
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
    given = script_options(
        __doc__,
        bases={"nargs": "*", "metavar": "BASE=TASK"},
        seed={"type": int, "default": 0},
        budget_tokens={"type": int, "help": "Default: that of the command."},
    )
    bases = given.bases or ["frugalign.sandbox:model=sandbox"]
    if not given.bases and are_named():
        bases += [f"{model_folder('stories260k')}=stories", f"{model_folder('chat-3m')}=short_answers"]
    rows: dict[str, dict[str, Any]] = read_json(RESULTS / "proxy-on-bases.json").get("rows", {})
    for entry in bases:
        base, _, task = entry.rpartition("=")
        name = f"{base.rstrip('/').rpartition('/')[-1]}, {task}"
        folder = (Path("runs/smoke") / WORK.name if given.smoke else WORK) / f"{name.replace(', ', '-')}-{given.seed}"
        rows[name] = measured(base, TASKS[task], folder, given.seed, 2_000 if given.smoke else given.budget_tokens)
        print(json.dumps({name: rows[name]}), flush=True)
    if not given.smoke:
        facts = {"seed": given.seed}
        command = "FRUGALIGN_TRIALS=folder python -m experiments.proxy_on_bases BASE=TASK ..."
        write_summary("proxy-on-bases", command, "0.26 to 135 million parameters", rows, facts)


if __name__ == "__main__":
    main()
