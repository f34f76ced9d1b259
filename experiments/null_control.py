"""Null control: with a reward that is noise, how often does an interval exclude zero?

    python -m experiments.null_control [--smoke]

Runs `studies/null-noise.yaml` ten times, each time with three other seeds. At most a tenth of the 95 % intervals may exclude zero. A further
proxy trains on rewards shuffled between responses. For contrast, the same study runs once with the exact reward.
"""

from __future__ import annotations

import hashlib
import random
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

from experiments.smoke import run_here, smallest
from experiments.summary import estimate, script_options, write_summary

from frugalign.cli.parser import read_config
from frugalign.sandbox import gold
from frugalign.study.options import StudyOptions
from frugalign.study.plan import cells_of
from frugalign.study.runner import read_study, run_study
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


def differences(study: StudyOptions, name: str, is_smoke: bool, **changes: Any) -> dict[str, dict[str, Any]]:
    """Run the study with some options changed, in this process for a smoke run.

    Returns each line's difference to the base by gold, and its p-value.
    """
    options = replace(study, output_dir=f"{study.output_dir}/{name}", **changes)
    if is_smoke:
        run_here(cells_of(read_study(options).lines, options), options)
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
    is_smoke = script_options(__doc__).smoke
    study = smallest(STUDY) if is_smoke else StudyOptions(**read_config(str(STUDY), StudyOptions) | {"jobs": 2})
    repeats, per_study, dealt_seeds = (1, 1, [1]) if is_smoke else (10, 3, [1, 2, 3, 4, 5])
    seeds = [[per_study * number + place for place in range(1, per_study + 1)] for number in range(repeats)]
    studies = [differences(study, f"noise-{number}", is_smoke, seeds=each) for number, each in enumerate(seeds)]
    only_proxy = {"base": None, "proxy": study.methods["proxy"]}
    shuffling = ["experiments.null_control:shuffled"]
    dealt = differences(study, "shuffled", is_smoke, reward=shuffling, methods=only_proxy, seeds=dealt_seeds)
    exact = differences(study, "exact", is_smoke, reward=["frugalign.sandbox:gold"], seeds=seeds[0])
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
    if not is_smoke:
        write_summary(
            "null-control", "python -m experiments.null_control", "frugalign.sandbox:model, 1.1 million", rows, facts
        )
    print(facts)


if __name__ == "__main__":
    main()
