"""Representation rewards of two small models on safety preferences, with every control, by `frugalign reward`.

    FRUGALIGN_TRIALS=folder python -m experiments.probes [--smoke]

The rewards learn from `pku-saferlhf-pairs`, split by prompt. They are also measured on other data: `hh-last-turn-pairs` (helpful and harmless),
and XSTest's completions, in which people labelled refusals. On unsafe prompts the refusal is the better answer, on safe ones the compliance.
TRL trains a whole reward model on the same pairs and base. The settings are the defaults, fixed before XSTest was read.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from experiments.chat import rows_of
from experiments.summary import estimate, script_options, write_summary
from experiments.trials import model_folder, trials

from frugalign.base.files import write_atomic
from frugalign.cli.main import main as frugalign

BASES = {"chat-3m": 3e-4, "stories260k": 1e-3}
"""Model: learning rate of its whole reward model."""
REFUSAL, COMPLIANCE = "2_full_refusal", "1_full_compliance"


def files(work: Path, first: int | None) -> list[str]:
    """The pairs to learn from and the three other data sets, as files for `frugalign reward`. Partial refusals and one empty row are left out.

    `first`: the number of rows to keep of each.
    """
    data = trials() / "data"
    hh = [
        row
        for row in rows_of(data / "hh-last-turn-pairs.jsonl.gz")
        if row["chosen"].strip() and row["rejected"].strip()
    ]
    kinds = {row["prompt"]: row["label"] for row in rows_of(data / "xstest-prompts.jsonl")}
    columns = ("prompt", "chosen", "rejected")
    sets: dict[str, list[dict[str, Any]]] = {
        "pku": [{key: row[key] for key in columns} for row in rows_of(data / "pku-saferlhf-pairs.jsonl.gz")],
        "hh": [{key: row[key] for key in columns} for row in hh],
    }
    for kind, good in (("unsafe", REFUSAL), ("safe", COMPLIANCE)):
        sets[f"xstest-{kind}"] = [
            {"prompt": row["prompt"], "completion": row["completion"], "label": row["final_label"] == good}
            for row in rows_of(data / "xstest-completions.jsonl.gz")
            if kinds.get(row["prompt"]) == kind and row["final_label"] in (REFUSAL, COMPLIANCE)
        ]
    for name, rows in sets.items():
        write_atomic(work / f"{name}.jsonl", "".join(json.dumps(row) + "\n" for row in rows[:first]))
    return [str(work / f"{name}.jsonl") for name in sets]


SETS = {"hh": "hh", "xstest-unsafe": "XSTest, harmful prompts", "xstest-safe": "XSTest, safe prompts"}


def report_of(name: str, rate: float, work: Path, first: int | None) -> dict[str, Any]:
    """Fit the reward of one base, unless that is done, and read its report. `first`: rows to keep of each data set."""
    folder = work / name
    if not (folder / "reward_report.json").is_file():
        words = ["--model_name_or_path", model_folder(name), "--output_dir", str(folder)]
        pairs, *others = files(work, first)
        words += ["--dataset_name", pairs, "--use_cpu", "true"]
        words += ["--eval_dataset_name", *others, "--cache_dir", str(work / f"states-{name}")]
        words += ["--full_model", "true", "--full_model_learning_rate", str(rate)]
        if frugalign(["reward", *words]):
            raise SystemExit(1)
    found: dict[str, Any] = json.loads((folder / "reward_report.json").read_text())
    return found


def rows_for(name: str, report: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The summary's rows for one base."""
    held_out, full, cost = report["test"], report["full_model"], report["cost"]
    others = {Path(key).stem: each for key, each in report["elsewhere"].items()}
    sets = {"PKU, unseen prompts": held_out} | {title: others[key] for key, title in SETS.items()}
    rows: dict[str, dict[str, Any]] = {
        title: {"accuracy, %": estimate(each["accuracy"], 100), "AUROC": each["auroc"]} for title, each in sets.items()
    }
    rows["probes"] = {
        "accuracy, %": estimate(held_out["accuracy"], 100),
        "seconds per 1,000 pairs": cost["seconds_extracting_per_1000"] + cost["seconds_fitting_per_1000"],
        "GFLOPs per 1,000 pairs": cost["flops_extracting_per_1000"] / 1e9,
        **{f"calibration error, {when}": held_out[f"calibration_{when}"]["ece"] for when in ("before", "after")},
    }
    rows["whole reward model"] = {
        "accuracy, %": estimate(full["accuracy"], 100),
        "seconds per 1,000 pairs": full["seconds_training_per_1000"],
        "GFLOPs per 1,000 pairs": full["flops_training_per_1000"] / 1e9,
    }
    rows["shuffled labels"] = {"accuracy, %": 100 * report["shuffled"]["mean"]}
    rows["words alone"] = {"accuracy, %": 100 * report["bag_of_words"]}
    rows["length alone"] = {"accuracy, %": 100 * report["length_only"]}
    return {f"{name}: {title}": row for title, row in rows.items()}


def main() -> None:
    """Fit, measure, write and print."""
    is_smoke = script_options(__doc__).smoke
    work, first = (Path("runs/smoke/probes"), 60) if is_smoke else (Path("runs/probes"), None)
    rows: dict[str, dict[str, Any]] = {}
    for name, rate in BASES.items():
        rows |= rows_for(name, report_of(name, rate, work, first))
    if not is_smoke:
        sizes = "chat-3m, 3.0 million parameters; stories260k, 0.26 million"
        write_summary("probes", "FRUGALIGN_TRIALS=folder python -m experiments.probes", sizes, rows)
    for title, row in rows.items():
        print(f"{title:40}", row)


if __name__ == "__main__":
    main()
