"""Representation rewards of two small models on safety preferences, with every control: `frugalign reward` as a user runs it.

    FRUGALIGN_TRIALS=folder python -m benchmarks.probes

Learned from `pku-saferlhf-pairs`, split by prompt; measured besides on data from elsewhere: `hh-last-turn-pairs` (helpful and harmless), and
XSTest's completions, where people labelled refusals: on unsafe prompts the refusal is the better answer, on safe ones the compliance. A whole
reward model is trained by TRL on the same pairs and base. The XSTest prompts were not looked at before the settings (the defaults) were fixed.
"""

from __future__ import annotations

import json
import platform
from pathlib import Path
from typing import Any

import torch
from benchmarks.chat_safety import rows_of
from benchmarks.trials import trials

from frugalign.base.files import write_atomic, write_json_atomic
from frugalign.cli.main import main as frugalign

RESULT = Path(__file__).parent / "results" / "probes.json"
WORK = Path("runs/probes")
BASES = {"chat-3m": 3e-4, "stories260k": 1e-3}
"""Model: learning rate of its whole reward model."""
REFUSAL, COMPLIANCE = "2_full_refusal", "1_full_compliance"


def elsewhere(data: Path) -> list[str]:
    """The three sets from elsewhere as files that `frugalign reward` takes; partial refusals and one empty row are left out."""
    hh = [
        row
        for row in rows_of(data / "hh-last-turn-pairs.jsonl.gz")
        if row["chosen"].strip() and row["rejected"].strip()
    ]
    kinds = {row["prompt"]: row["label"] for row in rows_of(data / "xstest-prompts.jsonl")}
    sets: dict[str, list[dict[str, Any]]] = {
        "hh": [{key: row[key] for key in ("prompt", "chosen", "rejected")} for row in hh]
    }
    for kind, good in (("unsafe", REFUSAL), ("safe", COMPLIANCE)):
        sets[f"xstest-{kind}"] = [
            {"prompt": row["prompt"], "completion": row["completion"], "label": row["final_label"] == good}
            for row in rows_of(data / "xstest-completions.jsonl.gz")
            if kinds.get(row["prompt"]) == kind and row["final_label"] in (REFUSAL, COMPLIANCE)
        ]
    for name, rows in sets.items():
        write_atomic(WORK / f"{name}.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    return [str(WORK / f"{name}.jsonl") for name in sets]


def main() -> None:
    """Fit, measure, write and print."""
    found = {}
    for name, rate in BASES.items():
        folder = WORK / name
        if not (folder / "reward_report.json").is_file():
            words = ["--model_name_or_path", str(trials() / "models" / name), "--output_dir", str(folder)]
            words += ["--dataset_name", str(trials() / "data" / "pku-saferlhf-pairs.jsonl.gz"), "--use_cpu", "true"]
            words += ["--eval_dataset_name", *elsewhere(trials() / "data"), "--cache_dir", str(WORK / f"states-{name}")]
            words += ["--full_model", "true", "--full_model_learning_rate", str(rate)]
            if frugalign(["reward", *words]):
                raise SystemExit(1)
        report = json.loads((folder / "reward_report.json").read_text())
        sets = {"held out": report["test"]} | {Path(key).stem: each for key, each in report["elsewhere"].items()}
        found[name] = {
            "examples": report["examples"],
            "sets": {key: {"accuracy": each["accuracy"], "auroc": each["auroc"]} for key, each in sets.items()},
            "ece": {when: report["test"][f"calibration_{when}"]["ece"] for when in ("before", "after")},
            **{key: report[key] for key in ("shuffled", "bag_of_words", "length_only", "per_layer", "gates")},
            **{key: report[key] for key in ("learning_curve", "cost", "full_model")},
        }
    write_json_atomic(
        RESULT,
        {
            "command": "FRUGALIGN_TRIALS=folder python -m benchmarks.probes",
            "machine": f"{platform.machine()}, {torch.get_num_threads()} thread(s), torch {torch.__version__}",
            "bases": found,
        },
    )


if __name__ == "__main__":
    main()
