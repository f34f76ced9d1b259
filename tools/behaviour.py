"""Check that a change keeps what every method computes: short runs of each, compared by hash.

    python -m tools.behaviour record before.json       # at the commit before a refactor
    python -m tools.behaviour compare before.json      # after it, on the same machine

Everything runs through the command line, so a move inside the package does not affect the check. The hashes are of
weights and completions. They hold on one machine with one set of versions, since another processor rounds
differently. `FRUGALIGN_TRIALS` adds stories260k.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import yaml

SANDBOX = ["--model_name_or_path", "frugalign.sandbox:model"]
PROMPTS = ["--dataset_name", "frugalign.sandbox:prompts"]
PAIRS = ["--dataset_name", "frugalign.sandbox:pairs"]
LEARNED = ["--reward", "frugalign.sandbox:learned"]
STEPS = 20
STUDIED: dict[str, dict[str, Any]] = {
    "sft": {},
    "ipo": {},
    "kto": {},
    "robust_dpo": {"label_smoothing": 0.1},
    "dpo": {"learning_rate": 3.0e-4},
    "conservative_dpo": {},
    "rloo": {"learning_rate": 1.0e-3},
    "grpo": {"learning_rate": 1.0e-3},
    "raft": {"rounds": 2},
    "context_distillation": {"rounds": 2},
    "best_of_n": {"n": 4},
    "reward_guided": {"weight": 1.0},
    "steering": {"layer": 2, "strength": 2.0},
}
"""A study's lines: TRL's trainers, and methods that are trained or decoded only in a study."""


def run(*words: str, folder: Path) -> None:
    """Run a frugalign command in `folder`. Show its output if it fails."""
    given = os.environ | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(
        [sys.executable, "-m", "frugalign.cli", *words], cwd=folder, capture_output=True, text=True, env=given
    )
    if done.returncode:
        raise SystemExit(f"frugalign {' '.join(words)} failed:\n{done.stdout}\n{done.stderr}")


def weights(folder: Path) -> str:
    """A hash of the names and bytes of all tensors in a folder's safetensors files. Headers and metadata are left
    out."""
    from safetensors.numpy import load_file

    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.safetensors")):
        for name, values in sorted(load_file(path).items()):
            digest.update(f"{name}\t{values.shape}\t{values.dtype}\n".encode())
            digest.update(values.tobytes())
    return digest.hexdigest()[:16]


def completions(folder: Path) -> str:
    """A hash of the texts that an evaluation sampled, the policy's and the base's."""
    lines = (folder / "samples.jsonl").read_text(encoding="utf-8").splitlines()
    texts = [[row["policy"], row["base"]] for row in map(json.loads, lines)]
    return hashlib.sha256(json.dumps(texts).encode()).hexdigest()[:16]


def proxies(folder: Path) -> dict[str, str]:
    """A proxy for each of the three objectives, and 200 sandbox completions under the first."""
    found = {}
    common = [*SANDBOX, *PROMPTS, *LEARNED, "--use_cpu", "--max_new_tokens", "24", "--max_steps", str(STEPS)]
    common += ["--per_device_train_batch_size", "32", "--learning_rate", "3e-3", "--num_generations", "4"]
    for objective in ("marginal", "sequential", "sequential_integrated"):
        run("proxy", *common, "--objective", objective, "--output_dir", objective, folder=folder)
        found[f"proxy {objective}"] = weights(folder / objective)
    rows = (Path(__file__).parents[1] / "src/frugalign/sandbox/prompts/test.jsonl").read_text().splitlines()[:200]
    (folder / "prompts.jsonl").write_text("\n".join(rows) + "\n")
    words = [
        *SANDBOX,
        "--dataset_name",
        "prompts.jsonl",
        "--reward",
        "frugalign.sandbox:gold",
        "--max_new_tokens",
        "24",
    ]
    run("evaluate", *words, "--proxy", "marginal", "--output_dir", "answers", folder=folder)
    return found | {"200 completions of the sandbox": completions(folder / "answers")}


def preferences(folder: Path) -> dict[str, str]:
    """The representation reward, re-ranking by it with a LoRA and with every weight, and re-ranking of sampled groups."""
    reward = [*SANDBOX, *PAIRS, "--use_cpu", "--cache_dir", "states", "--n_shuffles", "1"]
    run("reward", *reward, "--output_dir", "reward", folder=folder)
    found = {"reward": weights(folder / "reward")}
    common = [*SANDBOX, "--reward", "reward", "--use_cpu", "--max_steps", str(STEPS), "--learning_rate", "1e-3"]
    run("rerank", *common, *PAIRS, "--output_dir", "lora", "--reward_refresh_steps", "5", folder=folder)
    run("rerank", *common, *PAIRS, "--output_dir", "full", "--train", "full", "--sft_weight", "1", folder=folder)
    other = ["--dataset_name", "few.jsonl", "--sample", "4", "--max_new_tokens", "24", "--max_steps", "8"]
    rows = (Path(__file__).parents[1] / "src/frugalign/sandbox/prompts/train.jsonl").read_text().splitlines()[:48]
    (folder / "few.jsonl").write_text("\n".join(rows) + "\n")
    run("rerank", *common, *other, "--output_dir", "groups", folder=folder)
    return found | {f"rerank {name}": weights(folder / name) for name in ("lora", "full", "groups")}


def rounds(folder: Path) -> dict[str, str]:
    """PSLE, and DPO within PSLE's rounds."""
    common = [*SANDBOX, *PROMPTS, *LEARNED, "--principles", "frugalign.sandbox:PRINCIPLES", "--use_cpu"]
    common += ["--prompts_per_round", "64", "--max_new_tokens", "24", "--learning_rate", "1e-3", "--eval_prompts", "16"]
    found = {}
    for method in ("psle", "dpo"):
        run("psle", *common, "--rounds", "2", "--method", method, "--output_dir", method, folder=folder)
        found[f"psle {method}"] = weights(folder / method)
    return found


def studied(folder: Path) -> dict[str, str]:
    """A small study: the weights and the completions of each line."""
    study = {
        "model_name_or_path": "frugalign.sandbox:model",
        "dataset_name": "frugalign.sandbox:study_prompts",
        "reward": "frugalign.sandbox:learned",
        "judges": ["frugalign.sandbox:gold"],
        "principles": "frugalign.sandbox:PRINCIPLES",
        "seeds": [1],
        "budget": {"generated_tokens": 6000, "optimizer_steps": 8},
        "max_new_tokens": 24,
        "eval_prompts": 32,
        "use_cpu": True,
        "output_dir": "study",
        "methods": {"base": None, **STUDIED},
    }
    (folder / "study.yaml").write_text(yaml.safe_dump(study, sort_keys=False))
    run("study", "study.yaml", folder=folder)
    found = {}
    for cell in sorted((folder / "study" / "cells").iterdir()):
        method = json.loads((cell / "request.json").read_text())["method"]
        found[f"study {method}, answers"] = completions(cell / "evaluation")
    for training in sorted((folder / "study" / "trainings").glob("*/run")):
        found[f"study {training.parent.name.rsplit('-', 1)[0]}"] = weights(training)
    return found


def stories(folder: Path) -> dict[str, str]:
    """stories260k: a proxy and 200 completions, if the trials folder is given."""
    trials = os.environ.get("FRUGALIGN_TRIALS")
    if not trials:
        return {}
    texts = json.loads((Path(trials) / "data" / "tinystories-1k.json").read_text(encoding="utf-8"))
    begun = [" ".join(text.split()[:8]) for text in texts[:200]]
    (folder / "stories.jsonl").write_text("".join(json.dumps({"prompt": text}) + "\n" for text in begun))
    (folder / "short.py").write_text(
        "def reward(completions, **_):\n    return [-len(text) / 100 for text in completions]\n"
    )
    words = ["--model_name_or_path", str(Path(trials) / "models" / "stories260k"), "--dataset_name", "stories.jsonl"]
    words += ["--reward", "short.py:reward", "--max_new_tokens", "32"]
    more = ["--use_cpu", "--max_steps", str(STEPS), "--per_device_train_batch_size", "32", "--num_generations", "4"]
    run("proxy", *words, *more, "--output_dir", "stories", folder=folder)
    run("evaluate", *words, "--proxy", "stories", "--split", "all", "--output_dir", "told", folder=folder)
    return {
        "stories260k proxy": weights(folder / "stories"),
        "200 completions of stories260k": completions(folder / "told"),
    }


PARTS = {part.__name__: part for part in (proxies, preferences, rounds, studied, stories)}


def measured(jobs: int, names: list[str]) -> dict[str, str]:
    """The hashes of these parts, by name."""
    parts = [PARTS[name] for name in names]
    with tempfile.TemporaryDirectory() as name, ThreadPoolExecutor(jobs) as pool:
        folders = [Path(name) / part.__name__ for part in parts]
        for folder in folders:
            folder.mkdir()
        found: dict[str, str] = {}
        for part in pool.map(lambda pair: pair[0](pair[1]), zip(parts, folders, strict=True)):
            found |= part
    return found


def differences(before: dict[str, str], now: dict[str, str]) -> Iterator[str]:
    """One line for each entry that differs."""
    for name in sorted({*before, *now}):
        if before.get(name) != now.get(name):
            yield f"{name}: {before.get(name, 'not there')} before, {now.get(name, 'not there')} now"


def main() -> int:
    """Record, or compare with a record. Returns 1 if anything differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["record", "compare"])
    parser.add_argument("file", type=Path)
    parser.add_argument("--jobs", type=int, default=2, help="Commands at a time (default: 2).")
    parser.add_argument(
        "--only", nargs="+", choices=PARTS, help="Run these parts alone; compare leaves the others out."
    )
    options = parser.parse_args()
    now = measured(options.jobs, options.only or list(PARTS))
    if options.what == "record":
        options.file.write_text(json.dumps(now, indent=1, sort_keys=True) + "\n")
        print(f"{len(now)} hashes are in {options.file}.")
        return 0
    before = json.loads(options.file.read_text())
    found = list(differences({name: before[name] for name in before if name in now or not options.only}, now))
    print("\n".join(found) or f"All {len(now)} hashes are the same.")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
