"""PSLE beside what else could be learned from the same responses: context distillation, RAFT, DPO on the pairs, rejection and SFT, and its ablations.

    FRUGALIGN_TRIALS=folder python -m benchmarks.psle_methods --task sandbox [--jobs 2] [--part methods|ablations|prompts]

All methods run in one frame: the same prompts, generated tokens and optimiser steps. Six settings each run with one seed; the setting, and the round after which to
stop, are frozen by the main judge on validation prompts, within a KL beyond which a judge that is itself a model can be gamed; five other seeds then run with them, and only these read the test prompts. (By the training reward every
method that ranks chose a policy that exploits it: gold −2 at hundreds of nats.) Ablations change one thing of PSLE's frozen setting and keep the rest. A finished cell is not run twice;
cells are under runs/psle-methods.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from benchmarks.cells import result_in, run_cells
from benchmarks.label_noise import interval
from benchmarks.psle_tasks import TASKS

from frugalign.base.files import write_json_atomic
from frugalign.evaluation import evaluate
from frugalign.methods.psle.config import PSLEConfig
from frugalign.methods.psle.run import train_psle

RESULTS = Path(__file__).parent / "results"
WORK = Path("runs/psle-methods")
SEEDS, CHOOSING_SEED = (11, 12, 13, 14, 15), 10
_RATES = (1e-4, 3e-4, 6e-4, 1e-3, 2e-3, 3e-3)
_RANKED = [{"learning_rate": rate, "ranking_temperature": t} for rate in (3e-4, 1e-3) for t in (0.1, 0.5, 1.0)]
METHODS: dict[str, list[dict[str, float]]] = {
    "psle": _RANKED,
    "rejection": _RANKED,
    "dpo": [{"learning_rate": rate, "beta": beta} for rate in (1e-4, 3e-4, 1e-3) for beta in (0.1, 0.5)],
    "context_distillation": [{"learning_rate": rate} for rate in _RATES],
    "raft": [{"learning_rate": rate} for rate in _RATES],
    "sft": [{"learning_rate": rate} for rate in _RATES],
}
"""Six settings each. `rejection` is PSLE without its demonstrations. Those that rank were first tried at 1e-4, on the sandbox's validation prompts: too slow."""
ABLATIONS: dict[str, dict[str, dict[str, Any]]] = {
    "sandbox": {
        "no principles": {"use_principles": False},
        "no ranking": {"use_ranking": False},
        "no weights": {"weighting": "none"},
        "weights inside couples": {"weighting": "pair"},
        "fixed τ": {"tau_decay": 1.0},
        "raw τ": {"tau_scale": "raw"},
        "KL 0.1": {"kl_weight": 0.1},
    },
    # Against safe prompts that are refused: a brake, an earlier stop, and a reward that hears of it.
    "chat": {
        "KL 0.1": {"kl_weight": 0.1},
        "two rounds": {"rounds": 2},
        "refusals of safe prompts cost": {"reward": ["benchmarks.psle_tasks:both_sides"]},
    },
}
"""By task; one thing changed each."""
PROMPTS = (64, 256, 1024)
"""Prompts in all, for the gain against their number: psle and dpo."""


# -- one cell -----------------------------------------------------------------------------------------------------------


def cell_folder(cell: dict[str, Any]) -> Path:
    """Where a cell's run and result are."""
    setting = "-".join(f"{value:g}" for value in cell["setting"].values())
    name = cell["name"].replace(" ", "-")
    return WORK / cell["task"] / cell["kind"] / f"{name}-{setting}-{cell['seed']}"


def run_cell(cell: dict[str, Any]) -> None:
    """Train, and where the cell is of the test, evaluate; leaves `cell.json`."""
    torch.set_num_threads(1)
    folder = cell_folder(cell)
    if (folder / "cell.json").is_file():
        return
    task = TASKS[cell["task"]]()
    chooses = cell["kind"] == "choosing"
    run = folder / "run"
    begun = any(run.glob("round-*"))
    given: dict[str, Any] = {
        "model_name_or_path": task.model,
        "dataset_name": task.dataset,
        "principles": task.principles,
        "reward": [task.reward],
        "output_dir": str(run),
        "seed": cell["seed"],
        "eval_reward": [task.judges[0]],
        "eval_prompts": 256 if chooses else 1,
        "resume_from_checkpoint": "true" if begun else None,
        "use_cpu": True,
        "disable_tqdm": True,
    }
    config = PSLEConfig(**(given | task.options | cell["setting"] | cell["options"]))
    started = time.perf_counter()
    train_psle(config)
    rounds = sorted(run.glob("round-*"))
    manifests = [json.loads((each / "manifest.json").read_text()) for each in rounds]
    found: dict[str, Any] = {
        "seconds": time.perf_counter() - started,
        "costs": json.loads((run / "costs.json").read_text()),
        "branches": [manifest["branches"] for manifest in manifests],
        "use": [manifest["use"] for manifest in manifests],
        "use_of_raft": [manifest["use_of_raft"] for manifest in manifests],
    }
    if not chooses:
        found["test"] = evaluate(
            task.model,
            dataset_name=task.dataset,
            split="test",
            reward=[*task.judges, task.reward],
            adapter=str(rounds[min(int(cell["stop_after"]), len(rounds) - 1)]),
            max_new_tokens=config.max_new_tokens,
            seed=2000 + cell["seed"],
            device_map="cpu",
        )
    write_json_atomic(folder / "cell.json", cell | found)


def run_all(cells: list[dict[str, Any]], jobs: int) -> None:
    """Run what is not finished yet."""
    run_cells(cells, cell_folder, run_cell, jobs)


def result_of(cell: dict[str, Any]) -> dict[str, Any]:
    """The finished cell."""
    return result_in(cell_folder(cell))


def looks_of(cell: dict[str, Any]) -> list[tuple[float, float]]:
    """A choosing cell's main judge and KL to the start on validation prompts, after every round."""
    judge = TASKS[cell["task"]]().judges[0].rsplit(":", 1)[1]
    looks = [
        json.loads(path.read_text()) for path in sorted((cell_folder(cell) / "run").glob("round-*/evaluation.json"))
    ]
    return [(look["by_reward"][judge]["mean"], look["kl"]["mean"]) for look in looks]


# -- all cells ----------------------------------------------------------------------------------------------------------


def cell_of(
    task: str, name: str, chosen: tuple[dict[str, float], int], seed: int, kind: str, **options: Any
) -> dict[str, Any]:
    """One run: its `name` in the tables, its setting, the round whose policy is tested, and what else is not the task's default."""
    return {
        "task": task,
        "name": name,
        "setting": chosen[0],
        "stop_after": chosen[1],
        "seed": seed,
        "kind": kind,
        "options": options,
    }


def chosen_setting(task: str, method: str, jobs: int) -> tuple[dict[str, float], int]:
    """The setting, and the round, with the highest judge on validation prompts within the task's KL, the earliest of equals.

    Where nothing is within it, the one that goes least beyond.
    """
    cells = [
        cell_of(task, method, (setting, 0), CHOOSING_SEED, "choosing", method=method) for setting in METHODS[method]
    ]
    run_all(cells, jobs)
    limit = TASKS[task]().max_kl
    looks = [
        (judge if kl <= limit else -kl - 1e6, -place, cell["setting"])
        for cell in cells
        for place, (judge, kl) in enumerate(looks_of(cell))
    ]
    _, place, setting = max(looks, key=lambda look: look[:2])
    return setting, -place


def summary(cells: list[dict[str, Any]], base_of: list[dict[str, Any]]) -> dict[str, Any]:
    """Means over seeds with 95 % t-intervals: every measure, the difference to `base_of` (paired by seed), costs."""
    runs, others = [result_of(cell) for cell in cells], [result_of(cell) for cell in base_of]
    names = list(runs[0]["test"]["rewards"])

    def measure(run: dict[str, Any], name: str) -> float:
        return float(run["test"]["rewards"][name]["mean"])

    return {
        "setting": cells[0]["setting"],
        "stop_after": cells[0]["stop_after"],
        "measures": {name: interval([measure(run, name) for run in runs]) for name in names},
        "difference": {
            name: interval([measure(run, name) - measure(other, name) for run, other in zip(runs, others, strict=True)])
            for name in names
        },
        "length": interval([run["test"]["mean_length"]["mean"] for run in runs]),
        "base_length": statistics.mean(run["test"]["base_mean_length"]["mean"] for run in runs),
        "kl": interval([run["test"]["kl_per_sequence"]["mean"] for run in runs]),
        "base": {name: statistics.mean(run["test"]["base_rewards"][name]["mean"] for run in runs) for name in names},
        "use_of_tokens": statistics.mean(use["tokens"] for run in runs for use in run["use"]),
        "use_of_responses": statistics.mean(use["responses"] for run in runs for use in run["use"]),
        "generated_tokens": statistics.median(run["costs"]["generated_tokens"] for run in runs),
        "lm_forward_tokens": statistics.median(run["costs"]["lm_forward_tokens"] for run in runs),
        "optimizer_steps": statistics.median(run["costs"]["optimizer_steps"] for run in runs),
        "seconds": statistics.median(run["seconds"] for run in runs),
    }


def methods(task: str, jobs: int) -> dict[str, Any]:
    """Every method with its chosen setting, and its difference to PSLE."""
    settings = {method: chosen_setting(task, method, jobs) for method in METHODS}
    print(settings, flush=True)
    cells = {
        method: [cell_of(task, method, settings[method], seed, "test", method=method) for seed in SEEDS]
        for method in METHODS
    }
    run_all([cell for seed in range(len(SEEDS)) for cell in (each[seed] for each in cells.values())], jobs)
    return {method: summary(each, cells["psle"]) for method, each in cells.items()}


def ablations(task: str, jobs: int) -> dict[str, Any]:
    """PSLE's frozen setting with one thing changed."""
    setting = chosen_setting(task, "psle", jobs)
    whole = [cell_of(task, "psle", setting, seed, "test", method="psle") for seed in SEEDS]
    cells = {
        name: [cell_of(task, name, setting, seed, "test", **options) for seed in SEEDS]
        for name, options in ABLATIONS[task].items()
    }
    run_all([*whole, *(cell for each in cells.values() for cell in each)], jobs)
    return {name: summary(each, whole) for name, each in cells.items()}


def prompts(task: str, jobs: int) -> dict[str, Any]:
    """PSLE and DPO, each with its frozen setting, on fewer prompts and on all; the same number of rounds and steps."""
    found: dict[str, Any] = {}
    cells: dict[tuple[str, int], list[dict[str, Any]]] = {}
    rounds = int(TASKS[task]().options["rounds"])
    for method in ("psle", "dpo"):
        setting = chosen_setting(task, method, jobs)
        for number in PROMPTS:
            options = {"method": method, "prompts_per_round": number // rounds}
            name = f"{method} {number}"
            cells[method, number] = [cell_of(task, name, setting, seed, "test", **options) for seed in SEEDS]
    run_all([cell for each in cells.values() for cell in each], jobs)
    for (method, number), each in cells.items():
        found[f"{method}, {number} prompts"] = summary(each, cells["psle", number])
    return found


def main() -> None:
    """Run a part of a task, write it into the task's result and print it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--task", choices=sorted(TASKS), default="sandbox")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--part", choices=["methods", "ablations", "prompts"], default="methods")
    asked = parser.parse_args()
    TASKS[asked.task]().prepare()
    part = {"methods": methods, "ablations": ablations, "prompts": prompts}[asked.part](asked.task, asked.jobs)
    path = RESULTS / f"psle_{asked.task}.json"
    result = json.loads(path.read_text()) if path.is_file() else {}
    result |= {
        "command": f"python -m benchmarks.psle_methods --task {asked.task}",
        "machine": f"{platform.machine()}, 1 thread a run, {asked.jobs} runs at a time, torch {torch.__version__}",
        asked.part: part,
    }
    write_json_atomic(path, result)
    for name, row in part.items():
        shown = " ".join(f"{key} {value['mean']:.3f}" for key, value in row["measures"].items())
        print(f"{name:28} {shown} KL {row['kl']['mean']:.2f} {row['setting']}")


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
