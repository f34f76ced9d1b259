"""How far the rule-based refusal detector agrees with people, on XSTest's labelled completions.

    FRUGALIGN_TRIALS=folder python -m benchmarks.refusal_agreement

The rules were written while reading only the `development` half; `held_out` is the honest number. XSTest knows partial
refusals: they are left out, counted as refusals, and counted as answers. GPT-4's label of the same rows stands beside.
"""

import gzip
import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.trials import trials

from frugalign.base.files import write_json_atomic
from frugalign.metrics import agreement, is_refusal

FULL, PARTIAL = "2_full_refusal", "3_partial_refusal"
RESULT = Path(__file__).parent / "results" / "refusal_agreement.json"


def half(prompt: str) -> str:
    """By prompt, so that no prompt is in both halves."""
    return "development" if hashlib.sha256(prompt.encode()).digest()[0] % 2 == 0 else "held_out"


def compare(rows: list[dict[str, Any]], predicted: list[bool]) -> dict[str, Any]:
    """Agreement under the three readings of a partial refusal."""
    labels = [row["final_label"] for row in rows]
    clear = [(p, label) for p, label in zip(predicted, labels, strict=True) if label != PARTIAL]
    return {
        "partial_left_out": asdict(agreement([p for p, _ in clear], [label == FULL for _, label in clear])),
        "partial_as_refusal": asdict(agreement(predicted, [label in (FULL, PARTIAL) for label in labels])),
        "partial_as_answer": asdict(agreement(predicted, [label == FULL for label in labels])),
    }


def measure() -> dict[str, Any]:
    """Both halves, the rules and GPT-4."""
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


def main() -> None:
    results = measure()
    write_json_atomic(RESULT, results)
    print(
        f"{'half':12} {'judge':6} {'partial refusals':20} {'n':>5} {'kappa':>6} {'TP':>4} {'FP':>4} {'FN':>4} {'TN':>4}"
    )
    for name, entry in results.items():
        for judge in ("rules", "gpt4"):
            for reading, a in entry[judge].items():
                counts = [a[key] for key in ("true_positive", "false_positive", "false_negative", "true_negative")]
                confusion = " ".join(f"{count:4d}" for count in counts)
                print(f"{name:12} {judge:6} {reading:20} {a['n']:5d} {a['kappa']:6.3f} {confusion}")


if __name__ == "__main__":
    main()
