"""Null control: with a reward that is noise, how often does an interval exclude zero?

    python -m experiments.null_control [--studies 10] [--jobs 2]

Runs `studies/null-noise.yaml` ten times, each time with three other seeds. At most a tenth of the 95 % intervals may exclude zero. A further
proxy trains on rewards shuffled between responses. For contrast, the same study runs once with the exact reward.
"""

from __future__ import annotations

import argparse
import hashlib
import random
import statistics
from pathlib import Path
from typing import Any

from experiments.summary import estimate, write_summary

from frugalign.cli.parser import read_config
from frugalign.sandbox import gold
from frugalign.study.options import StudyOptions
from frugalign.study.runner import run_study
from frugalign.study.table import rows_of

STUDY = Path(__file__).parent / "studies" / "null-noise.yaml"


def _random_for(completions: list[Any]) -> random.Random:
    return random.Random(hashlib.sha256("\n".join(map(str, completions)).encode()).digest())


def noise(completions: list[str], **_: Any) -> list[float]:
    """A random number for every response. The same text gets another number in another batch, so there is nothing to learn."""
    draw = _random_for(completions)
    return [draw.gauss(0.0, 1.0) for _ in completions]


def shuffled(prompts: list[Any], completions: list[Any], **columns: Any) -> list[float | None]:
    """The exact reward, shuffled within the batch. Its distribution is right, but each response has another one's advantage."""
    values = list(gold(prompts=prompts, completions=completions, **columns))
    _random_for(completions).shuffle(values)
    return values


def differences(name: str, jobs: int, **changes: Any) -> dict[str, dict[str, Any]]:
    """Run the study with some options changed. Returns each line's difference to the base by gold, and its p-value."""
    options = StudyOptions(**(read_config(str(STUDY), StudyOptions) | changes))
    options.output_dir, options.jobs = f"runs/null-control/{name}", jobs
    found = {}
    for row in rows_of(run_study(options)):
        if row.main.difference is not None:
            found[row.line.label] = {"difference": row.main.difference.to_dict(), "p_holm": row.main.p_holm}
    return found


def excludes_zero(difference: dict[str, float]) -> bool:
    """Whether an interval lies on one side of zero."""
    return not difference["ci_low"] <= 0 <= difference["ci_high"]


def main() -> None:
    """Run the studies, write the summary, print the share."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=int, default=10)
    parser.add_argument("--jobs", type=int, default=2)
    options = parser.parse_args()
    seeds = [[3 * number + place for place in range(1, 4)] for number in range(options.studies)]
    studies = [differences(f"noise-{number}", options.jobs, seeds=each) for number, each in enumerate(seeds)]
    methods = read_config(str(STUDY), StudyOptions)["methods"]
    only_proxy = {"base": None, "proxy": methods["proxy"]}
    dealt = differences(
        "shuffled",
        options.jobs,
        reward=["experiments.null_control:shuffled"],
        methods=only_proxy,
        seeds=[1, 2, 3, 4, 5],
    )
    exact = differences("exact", options.jobs, reward=["frugalign.sandbox:gold"])
    rows: dict[str, dict[str, Any]] = {}
    for label in studies[0]:
        found = [study[label]["difference"] for study in studies]
        means = [each["mean"] for each in found]
        rows[label] = {
            "mean difference": statistics.mean(means),
            "lowest": min(means),
            "highest": max(means),
            f"intervals without zero, of {len(found)}": sum(map(excludes_zero, found)),
            "with the exact reward": estimate(exact[label]["difference"]),
            "p (Holm)": exact[label]["p_holm"],
        }
    rows["proxy, shuffled advantages"] = {"mean difference": estimate(dealt["proxy"]["difference"])}
    every = [line for study in studies for line in study.values()]
    facts = {
        "intervals": len(every),
        "share_excluding_zero": sum(excludes_zero(line["difference"]) for line in every) / len(every),
        "below_0_05_after_holm": sum(line["p_holm"] is not None and line["p_holm"] < 0.05 for line in every),
    }
    if options.studies >= 10:  # fewer are a trial, not a result
        write_summary(
            "null-control", "python -m experiments.null_control", "frugalign.sandbox:model, 1.1 million", rows, facts
        )
    print(facts)


if __name__ == "__main__":
    main()
