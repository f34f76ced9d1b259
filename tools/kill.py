"""Kill runs at random moments, resume each by the same command, and compare it with a run that nobody killed.

    python -m tools.kill                                   # 50 moments for every command
    python -m tools.kill --only psle study --moments 10 --seed 3
    python -m tools.kill --how full                        # the disk is full instead; or deleted: the run folder is

Half of the moments are spread evenly over a run's time, the other half lie right before or after a change of a file. A moment
ends the whole process group by SIGKILL. A resumed run may be killed again. Everything that a run leaves is compared: weights,
responses, manifests, metrics, completions, costs and the names of all files. Left out is only what depends on the clock: seconds,
memory, and the pages and cards that show them.

Runs are forked from one process that has imported the libraries, so a run takes a second or two.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import re
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from frugalign.base.wording import pluralize
from tools.forked_run import Ended, Moment, run

PAGE = Path(__file__).parents[1] / "docs/how-to/resume.md"
MARKS = ("<!-- kills -->", "<!-- /kills -->")
_MOST_KILLS = 3
_CLOCK = re.compile(r"(.*_)?(seconds|runtime|memory_mb|per_second)(_.*)?|machine|training_machine|threads")
"""Names of values that depend on the clock or on the machine."""
_IGNORED = re.compile(r"\.lock|log\.txt|report\.html|study\.(md|json)|last_used|README\.md|hashes\.json")
"""Files that show seconds, or that hold nothing of a run's result."""


# -- the commands --------------------------------------------------------------------------------------------------------


def data_in(folder: Path) -> None:
    """Write the prompts, the pairs and the study that the commands read."""
    from frugalign.sandbox.cached import sample_pairs
    from frugalign.sandbox.world import make_prompts

    def write(name: str, rows: list[dict[str, Any]]) -> None:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))

    write("prompts/train.jsonl", [{"prompt": row["prompt"]} for row in make_prompts("train", 12, 0)])
    few = [{"prompt": row["prompt"], "label": row["label"]} for row in make_prompts("train", 6, 1)]
    write("prompts/validation.jsonl", few)
    write("prompts/test.jsonl", few)
    write("pairs/train.jsonl", list(sample_pairs("train", 150)))


SANDBOX = {"model_name_or_path": "frugalign.sandbox:model", "use_cpu": "true"}
SAMPLING = {"max_new_tokens": 12, "learning_rate": 0.003}


def commands(data: Path) -> dict[str, list[str]]:
    """The command line of every verb, and of each of its forms. Checkpoints, log lines, rounds and epochs end at different steps."""
    gold = {"reward": "frugalign.sandbox:gold", "dataset_name": data / "prompts"}
    proxy = {"max_steps": 8, "num_iterations": 1, "num_generations": 4, "per_device_train_batch_size": 16, "p_t": 0.001}
    proxy |= {"save_steps": 4, "logging_steps": 3, "eval_steps": 4, "target_kl": 0.5, "save_total_limit": 2}
    proxy |= {"log_completions": "true"}
    rerank = {"reward": data / "reward", "dataset_name": data / "prompts", "sample": 4, "resample": "true"}
    rerank |= {"sampling_batch_size": 8, "per_device_train_batch_size": 6, "num_train_epochs": 2, "save_steps": 2}
    rerank |= {"logging_steps": 3, "shift_reward": "frugalign.sandbox:rude", "shift_prompts": 2, "shift_steps": 5}
    psle = {"principles": "frugalign.sandbox:PRINCIPLES", "rounds": 2, "num_generations": 2, "eval_prompts": 4}
    psle |= {"per_device_train_batch_size": 4, "logging_steps": 3, "save_steps": 2, "sampling_batch_size": 4}
    reward = {"dataset_name": data / "pairs", "n_shuffles": 1, "max_iterations": 10, "cache_dir": "states"}
    pairs = {"dataset_name": data / "pairs", "max_steps": 12, "per_device_train_batch_size": 16, "save_steps": 4}
    pairs |= {"logging_steps": 3, "eval_steps": 2, "save_total_limit": 2, "cache_dir": "states", "target_kl": 0.5}
    carried = {"train": "proxy", "cache_dir": "states"}
    verbs: dict[str, dict[str, Any]] = {
        "proxy": SANDBOX | SAMPLING | gold | proxy,
        "proxy-pairs": SANDBOX | pairs,
        "reward": SANDBOX | reward,
        "rerank": SANDBOX | SAMPLING | rerank,
        "rerank-proxy": SANDBOX | SAMPLING | rerank | carried,
        "psle": SANDBOX | SAMPLING | gold | psle,
        "psle-proxy": SANDBOX | SAMPLING | gold | psle | carried,
    }
    found = {name: [name.split("-")[0], *_flags(values), "--output_dir", "run"] for name, values in verbs.items()}
    return found | {"study": ["study", str(data / "study.yaml"), "--output_dir", "run"]}


def _flags(values: dict[str, Any]) -> Iterator[str]:
    for name, value in values.items():
        yield from (f"--{name}", str(value))


def study_in(data: Path) -> None:
    """Write a study of three lines, one of which learns from samples that the study draws."""
    study = {
        "model_name_or_path": "frugalign.sandbox:model",
        "dataset_name": str(data / "prompts"),
        "reward": ["frugalign.sandbox:learned"],
        "judges": ["frugalign.sandbox:gold"],
        "principles": "frugalign.sandbox:PRINCIPLES",
        "seeds": [1],
        "budget": {"generated_tokens": 800, "optimizer_steps": 4},
        "max_new_tokens": 12,
        "use_cpu": True,
        "jobs": 1,
        "methods": {"base": None, "proxy": None, "rerank": None},
    }
    (data / "study.yaml").write_text(yaml.safe_dump(study, sort_keys=False))


# -- what a run leaves -------------------------------------------------------------------------------------------------------


def left_in(folder: Path) -> dict[str, str]:
    """A hash of every file, by its path, without what depends on the clock."""
    files = [path for name in ("run", "states") for path in sorted((folder / name).rglob("*")) if path.is_file()]
    # A training that finds the study's samples finished does not copy the prompts for itself again.
    kept = [path for path in files if not _IGNORED.fullmatch(path.name) and path.parent.name != "prompts"]
    return {str(path.relative_to(folder)): _digest(path) for path in kept}


def _digest(path: Path) -> str:
    if path.suffix == ".json":
        content = json.dumps(_without_clock(json.loads(path.read_text())), sort_keys=True).encode()
    elif path.suffix in (".pt", ".pth"):
        content = _tensors(path)
    else:
        content = path.read_bytes()
    return hashlib.sha256(content).hexdigest()[:16]


def _without_clock(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_clock(each) for name, each in value.items() if not _CLOCK.fullmatch(name)}
    return [_without_clock(each) for each in value] if isinstance(value, list) else value


def _tensors(path: Path) -> bytes:
    """The content of a file that torch saved, whose own bytes may name the file."""
    import torch

    torch.set_printoptions(profile="full", precision=10)
    return repr(torch.load(path, weights_only=False)).encode()


def differences(whole: dict[str, str], other: dict[str, str]) -> list[str]:
    """The files that one run has and the other has not, or has with another content."""
    return [name for name in sorted({*whole, *other}) if whole.get(name) != other.get(name)]


# -- trials ------------------------------------------------------------------------------------------------------------------


@dataclass
class Result:
    """The trials of a command: the moments, the kills that hit, and what was not as it should be."""

    trials: int = 0
    kills: int = 0
    by_change: int = 0
    files: int = 0
    wrong: list[str] = field(default_factory=list)


def moment_of(rng: random.Random, whole: Ended, how: str) -> Moment:
    """A moment within a run as long as `whole`."""
    if how == "kill" and rng.random() < 0.5:
        return Moment(seconds=rng.uniform(0, whole.seconds))
    return Moment(change=rng.randint(1, max(1, whole.changes)), how=how)


def trial(words: list[str], folder: Path, whole: Ended, rng: random.Random, how: str) -> tuple[int, int, str]:
    """Stop and resume until the run gets through. Returns the stops, those at a change, and what went wrong, or nothing."""
    stops = at_change = 0
    for attempt in range(_MOST_KILLS + 1):
        again = attempt == 0 or (attempt < _MOST_KILLS and rng.random() < 0.3)
        moment = moment_of(rng, whole, how) if again else Moment()
        (folder / "output.txt").unlink(missing_ok=True)
        ended = run(words, folder, moment)
        output = (folder / "output.txt").read_text(errors="replace")
        said = "".join(output.strip().splitlines()[-1:])
        if ended.status == 0 or (ended.status == 2 and stops and "holds an earlier run" in said):
            return stops, at_change, ""
        refused = ended.status == 2 and "Traceback" not in output
        if moment == Moment() or not (ended.status == -signal.SIGKILL if how == "kill" else refused):
            return stops, at_change, f"status {ended.status}: {said}"
        stops, at_change = stops + 1, at_change + (moment.change is not None)
    return stops, at_change, "was stopped in every attempt"


def try_command(name: str, data: Path, place: Path, options: argparse.Namespace, how: str) -> Result:
    """The trials of one command, stopped in one way."""
    words = commands(data)[name]
    whole_folder, found = place / "whole", Result()
    whole_folder.mkdir(parents=True)
    ended = run(words, whole_folder, Moment())
    if ended.status:
        raise SystemExit(f"{name} failed:\n{(whole_folder / 'output.txt').read_text()}")
    whole = left_in(whole_folder)
    found.files = len(whole)
    rng = random.Random(f"{options.seed} {how} {name}")
    while found.trials < options.moments:
        folder = place / f"trial-{found.trials}"
        folder.mkdir()
        kills, at_change, wrong = trial(words, folder, ended, rng, how)
        if not kills and not wrong:  # the moment came after the end
            shutil.rmtree(folder)
            continue
        different = [] if wrong else differences(whole, left_in(folder))
        found.trials, found.kills, found.by_change = found.trials + 1, found.kills + kills, found.by_change + at_change
        if wrong or different:
            found.wrong.append(
                f"{name}, {how}, trial {found.trials - 1}: {wrong or 'other ' + ', '.join(different[:8])}"
            )
            print(found.wrong[-1], flush=True)
        else:
            shutil.rmtree(folder)
    print(
        f"{name}, {how}: {pluralize(found.trials, 'run')}, {pluralize(found.kills, 'stop')}, {len(found.wrong)} not as they should be.",
        flush=True,
    )
    return found


def preload() -> None:
    """Import what the commands need. Nothing is computed: threads of a computation would not survive a fork."""
    import importlib

    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    for method in ("proxy_rlhf", "proxy_stored", "representation_reward", "rerank", "psle"):
        importlib.import_module(f"frugalign.methods.{method}.run")
    for module in ("evaluation", "study.cell", "study.runner", "reports.study.page", "cli.study", "reports.run_page"):
        importlib.import_module(f"frugalign.{module}")
    importlib.import_module("matplotlib.pyplot")


def table(results: dict[str, Result]) -> str:
    """The results in Markdown."""
    lines = [
        "| command | runs killed | kills | at a change of a file | files compared | different |",
        "|---|---|---|---|---|---|",
    ]
    for name, each in results.items():
        lines.append(
            f"| `{name}` | {each.trials} | {each.kills} | {each.by_change} | {each.files} | {len(each.wrong)} |"
        )
    return "\n".join(lines) + "\n"


def main() -> int:
    """Run the trials, print the table, and write it into the documentation. Returns 1 if anything differs."""
    names = list(commands(Path()))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--moments", type=int, default=50, help="Runs to kill, for each command (default: 50).")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", choices=names, default=names)
    ways = ["kill", "full", "deleted"]
    parser.add_argument("--how", nargs="+", choices=ways, default=ways[:1], help="What happens (default: kill).")
    parser.add_argument("--keep", type=Path, help="A folder for the runs; those that differ stay there.")
    parser.add_argument("--write", action="store_true", help=f"Write the table into {PAGE.name}.")
    options = parser.parse_args()
    preload()
    with tempfile.TemporaryDirectory() as temporary:
        place = Path(options.keep or temporary).resolve()
        data = place / "data"
        data_in(data)
        study_in(data)
        if any(name.startswith("rerank") for name in options.only):
            reward = [word if word != "run" else "reward" for word in commands(data)["reward"]]
            if run(reward, data, Moment()).status:
                raise SystemExit((data / "output.txt").read_text())
        tried = {
            how: {name: try_command(name, data, place / how / name, options, how) for name in options.only}
            for how in options.how
        }
    for how, results in tried.items():
        print(f"{how}:\n\n{table(results)}")
    if options.write and "kill" in tried:
        text, found = PAGE.read_text(encoding="utf-8"), table(tried["kill"])
        before, rest = text.split(MARKS[0])
        PAGE.write_text(f"{before}{MARKS[0]}\n{found}{MARKS[1]}{rest.split(MARKS[1])[1]}", encoding="utf-8")
    return 1 if any(each.wrong for results in tried.values() for each in results.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
