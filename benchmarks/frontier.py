"""The frontier of reward against KL: frugalign's proxy beside TRL's RLOO, full fine-tuning and LoRA, on the stories task.

    FRUGALIGN_TRIALS=folder python -m benchmarks.frontier [--quick] [--only METHOD] [--output FILE]

Six settings of each method, the same number of sampled tokens for every run. Settings and checkpoints are selected on 96 training
prompts that no run trains on; the chosen checkpoints, at most one per method and KL level, are then read once on the test prompts.
A finished run is a line in a work file under `runs/frontier/`, so that a benchmark that was stopped goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.frontier_points import admitted, best_at, best_checkpoint
from benchmarks.frontier_settings import FIRST_OF_EACH, FULL, LEVELS, QUICK, SETTINGS, Budget, Setting

RESULT = Path(__file__).parent / "results" / "frontier.json"
WORK = Path("runs/frontier")
METHODS = ("proxy", "token-bias", "rloo", "rloo-lora", "untrained")
FAMILIES = {"proxy": ("proxy", "token-bias", "untrained"), "rloo": ("rloo",), "rloo-lora": ("rloo-lora",)}


def lines(file: Path) -> list[dict[str, Any]]:
    """The whole lines of a work file; a line that a kill cut short is left out, and its run is done again."""
    found = []
    for text in file.read_text(encoding="utf-8").splitlines() if file.exists() else []:
        try:
            found.append(json.loads(text))
        except json.JSONDecodeError:
            continue
    return found


def append(file: Path, entry: dict[str, Any]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(entry) + "\n")


def run_one(setting: Setting, budget: Budget, work: Path) -> None:
    """One setting in this process, which holds nothing else: its peak memory is the run's own."""
    from benchmarks.frontier_runs import run

    found = run(setting, budget, work / setting.name)
    append(work / "runs.jsonl", {"name": setting.name, "method": setting.method, "options": setting.options} | found)


def run_missing(settings: list[Setting], work: Path, quick: bool) -> None:
    """Every setting that the work file lacks, each in a process of its own, one after the other."""
    done = {entry["name"] for entry in lines(work / "runs.jsonl")}
    for number, setting in enumerate(settings, start=1):
        if setting.name in done:
            continue
        print(f"[{number}/{len(settings)}] {setting.name}", flush=True)
        command = [sys.executable, "-m", "benchmarks.frontier", "--run", setting.name, *(["--quick"] if quick else [])]
        subprocess.run(command, check=True)


def read_test(run: dict[str, Any], point: dict[str, Any], budget: Budget, work: Path) -> dict[str, Any]:
    """A chosen checkpoint on the test prompts, read once: a second look is answered from the work file."""
    key = {"name": run["name"], "step": point["step"]}
    for entry in lines(work / "tests.jsonl"):
        if {name: entry[name] for name in key} == key:
            return entry
    from benchmarks.frontier_runs import test_checkpoint

    entry = key | test_checkpoint(run, point, budget, work)
    append(work / "tests.jsonl", entry)
    return entry


def summarise(budget: Budget, work: Path, runs: list[dict[str, Any]]) -> dict[str, Any]:
    """The frontier of each method on validation prompts, its chosen checkpoints on test prompts, and every run."""
    from benchmarks.frontier_runs import test_base

    table = []
    for method in METHODS:
        for level in LEVELS:
            mine = [run for run in runs if run["method"] == method and admitted(run, level)]
            chosen = best_checkpoint(mine, level)
            row: dict[str, Any] = {"method": method, "kl_level": level, "settings": len(mine)}
            if chosen is not None:
                run, point = chosen
                row |= {
                    "validation_reward_at_level": best_at(mine, level),
                    "chosen": {"name": run["name"], "step": point["step"]},
                    "validation": {"reward": point["reward"], "kl": point["kl"]},
                    "test": read_test(run, point, budget, work),
                }
            table.append(row)
    return {
        "task": "stories260k, minus VADER compound, temperature 1, exact KL in nats per sequence",
        "budget": vars(budget) | {"most_sampled_tokens_per_run": budget.tokens},
        "selection": "settings and checkpoints on held-out training prompts; at the first level p_t <= 1e-3",
        "base_on_test": test_base(budget),
        "frontier": table,
        "runs": runs,
        "versions": {name: version(name) for name in ("torch", "transformers", "trl", "peft")}
        | {"python": platform.python_version()},
    }


def show(result: dict[str, Any]) -> None:
    print(
        f"{'method':11} {'KL <=':>5} {'val at level':>12} {'val':>7} {'KL':>6} {'test [95 %]':>24} {'KL':>6}  setting"
    )
    for row in result["frontier"]:
        if "test" not in row:
            print(f"{row['method']:11} {row['kl_level']:5.0f}  no checkpoint at or below this KL")
            continue
        test, validation = row["test"], row["validation"]
        interval = f"{test['reward']['mean']:+.3f} [{test['reward']['ci_low']:+.3f}, {test['reward']['ci_high']:+.3f}]"
        print(
            f"{row['method']:11} {row['kl_level']:5.0f} {row['validation_reward_at_level']:+12.3f} {validation['reward']:+7.3f} "
            f"{validation['kl']:6.2f} {interval:>24} {test['kl']['mean']:6.2f}  {row['chosen']['name']} @ {row['chosen']['step']}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--quick", action="store_true", help="One setting of each method on a tiny budget, to see that everything runs."
    )
    parser.add_argument("--only", choices=list(FAMILIES), help="Run only this method (the proxy with its controls).")
    parser.add_argument("--report", action="store_true", help="Make the result from the runs that are finished.")
    parser.add_argument("--output", type=Path, default=None, help=f"Default: {RESULT.name} beside the other results.")
    parser.add_argument("--run", help=argparse.SUPPRESS)
    args = parser.parse_args()
    budget = QUICK if args.quick else FULL
    work = WORK / budget.label
    if args.run:
        run_one(next(setting for setting in SETTINGS if setting.name == args.run), budget, work)
        return
    wanted = FAMILIES[args.only] if args.only else METHODS
    settings = [setting for setting in (FIRST_OF_EACH if args.quick else SETTINGS) if setting.method in wanted]
    if not args.report:
        run_missing(settings, work, args.quick)
    from benchmarks.frontier_figure import draw

    from frugalign.base.files import write_json_atomic

    names = {setting.name for setting in settings}
    runs = [entry for entry in lines(work / "runs.jsonl") if entry["name"] in names]
    result = summarise(budget, work, runs)
    output = args.output or (work / RESULT.name if args.quick else RESULT)
    write_json_atomic(output, result)
    draw(result, output.with_suffix(".png"))
    show(result)
    print(f"Written: {output} and {output.with_suffix('.png')}")


if __name__ == "__main__":
    main()
