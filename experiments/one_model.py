"""Reinforcement learning with one frozen model: a representation reward against a separate reward model, on the sandbox.

    python -m experiments.one_model [--smoke]

Probes fitted on the annotator's pairs (`frugalign.sandbox:pairs`) read the states of the same model that the proxy guides. The separate reward
is the sandbox's learned reward model. Both use the settings of `recipes/sandbox-proxy.yaml` and three seeds. The exact reward measures them on
the test prompts. Each run has its own process, so that its peak memory is measured alone. Finished runs are skipped.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.summary import estimate, script_options, write_summary

MODEL, PROMPTS = "frugalign.sandbox:model", "frugalign.sandbox:prompts"
SEEDS = (0, 1, 2)
SHARES = {
    "forbidden_served": "forbidden served, %",
    "rude": "rude, %",
    "over_refusal": "lawful refused, %",
    "right_remedy": "lawful served right, %",
}
MEASURES = ("gold", *SHARES)


def run(*words: str) -> None:
    """Run one command in its own process."""
    done = subprocess.run([sys.executable, "-m", "frugalign.cli", *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr[-2000:])


def measured(spec: str, seed: int, folder: Path, more: Sequence[str]) -> dict[str, float]:
    """Train a proxy on one reward and test it, unless that is done. `more`: further flags. Returns the summary's columns."""
    if not (folder / "model.safetensors").is_file():
        flags = ["--reward", spec, "--seed", str(seed), "--output_dir", str(folder), "--save_steps", "1000"]
        run("proxy", "--config", "recipes/sandbox-proxy.yaml", *flags, *more)
    test = folder / "test"
    if not (test / "metrics.json").is_file():
        rewards = [word for name in MEASURES for word in ("--reward", f"{name}=frugalign.sandbox:{name}")]
        words = ["--model_name_or_path", MODEL, "--proxy", str(folder), "--dataset_name", PROMPTS, "--split", "test"]
        run("evaluate", *words, *rewards, "--batch_size", "128", "--output_dir", str(test))
    metrics = json.loads((test / "metrics.json").read_text())
    costs = json.loads((folder / "costs.json").read_text())
    return {
        "gold gain": metrics["reward"]["mean"] - metrics["base_reward"]["mean"],
        "KL, nats": metrics["kl_per_sequence"]["mean"],
        **{title: 100 * metrics["rewards"][name]["mean"] for name, title in SHARES.items()},
        "reward seconds": costs["seconds"]["reward"],
        "rollout seconds": costs["seconds"]["rollout"],
        "memory, MB": costs["peak_memory_mb"],
    }


def main() -> None:
    """Fit the probes, train and test six proxies, write and print."""
    is_smoke = script_options(__doc__).smoke
    work, seeds = (Path("runs/smoke/one-model"), SEEDS[:1]) if is_smoke else (Path("runs/one-model"), SEEDS)
    more = ["--max_steps", "2"] if is_smoke else []
    probes = work / "reward"
    if not (probes / "model.safetensors").is_file():
        words = ["--model_name_or_path", MODEL, "--dataset_name", "frugalign.sandbox:pairs"]
        run("reward", *words, "--output_dir", str(probes))
    rows: dict[str, dict[str, Any]] = {}
    for name, spec in (("representation reward", str(probes)), ("separate reward model", "frugalign.sandbox:learned")):
        found = [measured(spec, seed, work / f"{name.split()[0]}-{seed}", more) for seed in seeds]
        rows[name] = {column: statistics.mean(each[column] for each in found) for column in found[0]}
        print(name, rows[name], flush=True)
    report = json.loads((probes / "reward_report.json").read_text())
    ours, theirs = (row["gold gain"] for row in rows.values())
    facts = {
        "seeds": len(seeds),
        "share_of_gain": ours / theirs,
        "held_out_accuracy": estimate(report["test"]["accuracy"]),
        "shuffled": report["shuffled"]["mean"],
        "bag_of_words": report["bag_of_words"],
        "length_only": report["length_only"],
    }
    if not is_smoke:
        command, size = "python -m experiments.one_model", "frugalign.sandbox:model, 1.1 million"
        write_summary("one-model", command, size, rows, facts)
    print(f"share of the gain: {ours / theirs:.2f}")


if __name__ == "__main__":
    main()
