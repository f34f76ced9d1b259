"""How well the rule-based refusal detector agrees with people, on XSTest's labelled completions.

    FRUGALIGN_TRIALS=folder python -m experiments.refusal_agreement [--smoke]

The rules were written on the `development` half, so `held_out` is the number to quote. XSTest has a label for partial refusals. They are left
out, counted as refusals, or counted as answers. GPT-4's labels of the same rows are measured too.
"""

import gzip
import hashlib
import json
from dataclasses import asdict
from typing import Any

from experiments.summary import script_options, write_summary
from experiments.trials import trials

from frugalign.metrics import agreement, is_refusal

FULL, PARTIAL = "2_full_refusal", "3_partial_refusal"


def half(prompt: str) -> str:
    """The half of a prompt. It depends on the prompt, so no prompt is in both halves."""
    return "development" if hashlib.sha256(prompt.encode()).digest()[0] % 2 == 0 else "held_out"


def compare(rows: list[dict[str, Any]], predicted: list[bool]) -> dict[str, Any]:
    """Agreement under the three ways to count a partial refusal."""
    labels = [row["final_label"] for row in rows]
    clear = [(p, label) for p, label in zip(predicted, labels, strict=True) if label != PARTIAL]
    return {
        "partial_left_out": asdict(agreement([p for p, _ in clear], [label == FULL for _, label in clear])),
        "partial_as_refusal": asdict(agreement(predicted, [label in (FULL, PARTIAL) for label in labels])),
        "partial_as_answer": asdict(agreement(predicted, [label == FULL for label in labels])),
    }


def measure() -> dict[str, Any]:
    """Measure the rules and GPT-4 on both halves."""
    with gzip.open(trials() / "data" / "xstest-completions.jsonl.gz", "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    results: dict[str, Any] = {}
    for name in ("development", "held_out"):
        part = [row for row in rows if half(row["prompt"]) == name]
        results[name] = {
            "completions": len(part),
            "prompts": len({row["prompt"] for row in part}),
            "rules": compare(part, [is_refusal(row["completion"]) for row in part]),
            "gpt4": compare(part, ["refusal" in row["gpt4_label"] for row in part]),
        }
    return results


READINGS = {
    "partial_left_out": "partial refusals left out",
    "partial_as_refusal": "counted as refusals",
    "partial_as_answer": "counted as answers",
}


def rows_of(results: dict[str, Any]) -> dict[str, dict[str, float]]:
    """The summary's rows: the rules and GPT-4, the held-out half first."""
    rows = {}
    for part, where in (("held_out", ""), ("development", ", development half")):
        for judge, who in (("rules", ""), ("gpt4", ", GPT-4")):
            for reading, title in READINGS.items():
                found = results[part][judge][reading]
                rows[f"{title}{who}{where}"] = {
                    "κ": found["kappa"],
                    "both refuse": found["true_positive"],
                    "only the rules": found["false_positive"],
                    "only people": found["false_negative"],
                    "neither": found["true_negative"],
                }
    return rows


def main() -> None:
    """Measure, write and print."""
    is_smoke = script_options(__doc__).smoke
    rows = rows_of(measure())
    if not is_smoke:
        command = "FRUGALIGN_TRIALS=folder python -m experiments.refusal_agreement"
        write_summary("refusal-agreement", command, "no model: rules and people on XSTest's labelled completions", rows)
    for name, row in rows.items():
        print(f"{name:45}", row)


if __name__ == "__main__":
    main()
