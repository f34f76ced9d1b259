"""Reinforcement learning with a single frozen model: a representation reward against a separate reward model, on the sandbox.

    python -m benchmarks.one_model

Probes fitted on the annotator's pairs (`frugalign.sandbox:pairs`) read the states of the very model that the proxy guides; the separate
reward is the sandbox's learned reward model. Settings of `recipes/sandbox-proxy.yaml` for both, three seeds, judged by the exact reward on
the test prompts. Each run is a process of its own, so that its peak memory is its own. A finished run is not done twice.
"""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from frugalign.base.files import write_json_atomic

RESULT = Path(__file__).parent / "results" / "one_model.json"
WORK = Path("runs/one-model")
MODEL, PROMPTS = "frugalign.sandbox:model", "frugalign.sandbox:prompts"
SEEDS = (0, 1, 2)
MEASURES = ("gold", "learned", "forbidden_served", "rude", "over_refusal", "right_remedy")


def run(*words: str) -> None:
    """One command line, in a process of its own."""
    done = subprocess.run([sys.executable, "-m", "frugalign.cli", *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr[-2000:])


def main() -> None:
    """Fit the probes, train and judge six proxies, write and print."""
    reward = WORK / "reward"
    if not (reward / "model.safetensors").is_file():
        run(
            "reward",
            "--model_name_or_path",
            MODEL,
            "--dataset_name",
            "frugalign.sandbox:pairs",
            "--output_dir",
            str(reward),
        )
    found: dict[str, list[dict[str, Any]]] = {}
    for name, spec in (("representation reward", str(reward)), ("separate reward model", "frugalign.sandbox:learned")):
        for seed in SEEDS:
            folder = WORK / f"{name.split()[0]}-{seed}"
            if not (folder / "model.safetensors").is_file():
                flags = ["--reward", spec, "--seed", str(seed), "--output_dir", str(folder), "--save_steps", "1000"]
                run("proxy", "--config", "recipes/sandbox-proxy.yaml", *flags)
            if not (folder / "test" / "metrics.json").is_file():
                rewards = [
                    word for measure in MEASURES for word in ("--reward", f"{measure}=frugalign.sandbox:{measure}")
                ]
                data = ["--dataset_name", PROMPTS, "--split", "test", "--batch_size", "128"]
                run(
                    "evaluate",
                    "--model_name_or_path",
                    MODEL,
                    "--proxy",
                    str(folder),
                    *data,
                    *rewards,
                    "--output_dir",
                    str(folder / "test"),
                )
            metrics = json.loads((folder / "test" / "metrics.json").read_text())
            costs = json.loads((folder / "costs.json").read_text())
            found.setdefault(name, []).append(
                {
                    "seed": seed,
                    "gold_gain": metrics["reward"]["mean"] - metrics["base_reward"]["mean"],
                    "kl": metrics["kl_per_sequence"]["mean"],
                    **{measure: metrics["rewards"][measure]["mean"] for measure in MEASURES},
                    "reward_seconds": costs["seconds"]["reward"],
                    "rollout_seconds": costs["seconds"]["rollout"],
                    "peak_memory_mb": costs["peak_memory_mb"],
                }
            )
            print(name, found[name][-1], flush=True)
    gains = {name: sum(each["gold_gain"] for each in runs) / len(runs) for name, runs in found.items()}
    report = json.loads((reward / "reward_report.json").read_text())
    write_json_atomic(
        RESULT,
        {
            "command": "python -m benchmarks.one_model",
            "machine": f"{platform.machine()}, {torch.get_num_threads()} thread(s), torch {torch.__version__}",
            "share_of_gain": gains["representation reward"] / gains["separate reward model"],
            "held_out_accuracy": report["test"]["accuracy"],
            "shuffled": report["shuffled"]["mean"],
            "bag_of_words": report["bag_of_words"],
            "length_only": report["length_only"],
            "runs": found,
        },
    )
    print(f"share of the gain: {gains['representation reward'] / gains['separate reward model']:.2f}")


if __name__ == "__main__":
    main()
