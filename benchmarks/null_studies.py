"""Null controls: ten studies with a reward that is noise. How often does an interval exclude zero, and does a proxy gain by shuffled advantages?

    python -m benchmarks.null_studies [--jobs 2]

Beside them one study of the same size with the exact reward, in which there is something to be found.
Of the 95 % intervals of all lines, at most a tenth may exclude zero, and none of the p-values after Holm's correction within a study may be below 0.05.
"""

from __future__ import annotations

import argparse
import os
import platform
from pathlib import Path
from typing import Any

import torch
from benchmarks.page_study import excludes_zero

from frugalign.base.files import write_json_atomic
from frugalign.study.options import StudyOptions
from frugalign.study.runner import run_study
from frugalign.study.table import Row, rows_of

RESULT = Path(__file__).parent / "results" / "null_studies.json"
WORK = Path("runs/null-studies")
N = 10
# Principles inform without any reward: imitating responses under them is a gain that no noise explains away, so PSLE goes without.
METHODS: dict[str, Any] = {
    "best_of_n": {"n": 4},
    "proxy": {"p_t": 0.01, "beta": 0.4, "learning_rate": 3e-3, "num_iterations": 1},
    "raft": {"rounds": 2, "learning_rate": 3e-4},
    "psle": {"rounds": 2, "learning_rate": 3e-4, "use_principles": False},
    "dpo": {"learning_rate": 3e-4, "beta": 0.3, "sample": 4},
    "rloo": {"learning_rate": 3e-4, "beta": 0.1},
}


def options(name: str, reward: str, methods: dict[str, Any], seeds: list[int], jobs: int) -> StudyOptions:
    """A small study on the sandbox: a sixteenth of the core study's tokens, a quarter of its steps."""
    return StudyOptions(
        model_name_or_path="frugalign.sandbox:model",
        dataset_name="frugalign.sandbox:study_prompts",
        reward=[reward],
        judges=["frugalign.sandbox:gold"],
        principles="frugalign.sandbox:PRINCIPLES",
        seeds=seeds,
        budget={"generated_tokens": 10_000, "optimizer_steps": 32},
        max_new_tokens=48,
        eval_prompts=150,
        use_cpu=True,
        methods=methods,
        jobs=jobs,
        output_dir=str(WORK / name),
    )


def verdicts(rows: list[Row]) -> dict[str, Any]:
    """By line: the difference to the base by gold, and its p-values."""
    found = {}
    for row in rows:
        main = row.main
        assert main.difference is not None
        found[row.line.label] = {
            "difference": main.difference.to_dict(),
            "p_value": main.p_value,
            "p_holm": main.p_holm,
        }
    return found


def main() -> None:
    """Run the studies, write the result, print the shares."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=2)
    jobs = parser.parse_args().jobs
    studies = []
    for number in range(N):
        seeds = [3 * number + place for place in range(1, 4)]
        studies.append(
            verdicts(
                rows_of(run_study(options(f"noise-{number}", "benchmarks.null_rewards:noise", METHODS, seeds, jobs)))
            )
        )
    shuffled = verdicts(
        rows_of(
            run_study(
                options(
                    "shuffled", "benchmarks.null_rewards:shuffled", {"proxy": METHODS["proxy"]}, [1, 2, 3, 4, 5], jobs
                )
            )
        )
    )
    # The same study with something to be found: what it finds says what the others could have.
    learned = verdicts(rows_of(run_study(options("gold", "frugalign.sandbox:gold", METHODS, [1, 2, 3], jobs))))
    every = [line for study in studies for line in study.values()]
    excluded = [excludes_zero(line["difference"]) for line in every]
    result = {
        "command": "python -m benchmarks.null_studies",
        "machine": f"{platform.machine()}, {jobs} cells at a time, torch {torch.__version__}",
        "studies": studies,
        "intervals": len(every),
        "share_excluding_zero": sum(excluded) / len(excluded),
        "below_0_05_after_holm": sum(line["p_holm"] is not None and line["p_holm"] < 0.05 for line in every),
        "proxy_with_shuffled_advantages": shuffled["proxy"],
        "with_the_exact_reward": learned,
    }
    write_json_atomic(RESULT, result)
    print({name: value for name, value in result.items() if name != "studies"})


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
