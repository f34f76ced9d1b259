"""Not a test: runs of rounds on a small model, and what is asked of the folders that they leave."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from tests.two_layers import two_layers

from frugalign.sandbox.world import make_prompts

N = 12


def make_prompt_files() -> None:
    """In the current folder."""
    write("prompts/train.jsonl", [{"prompt": row["prompt"]} for row in make_prompts("train", N, 0)])
    write(
        "prompts/validation.jsonl",
        [{"prompt": row["prompt"], "label": row["label"]} for row in make_prompts("train", 6, 1)],
    )
    write("prompts/test.jsonl", [{"prompt": row["prompt"]} for row in make_prompts("test", 2, 0)])


def write(path: str, rows: list[dict[str, Any]]) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text("".join(json.dumps(row) + "\n" for row in rows))


def command(**flags: Any) -> list[str]:
    given = {
        "model_name_or_path": two_layers(),
        "dataset_name": "prompts",
        "principles": "frugalign.sandbox:PRINCIPLES",
        "reward": "frugalign.sandbox:gold",
        "eval_reward": "frugalign.sandbox:rude",
        "output_dir": "run",
        "rounds": 2,
        "num_generations": 2,
        "max_new_tokens": 24,
        "per_device_train_batch_size": 4,
        "logging_steps": 1,
        "learning_rate": 0.003,
        "use_cpu": "true",
    } | flags
    return [
        "psle",
        *(word for name, value in given.items() if value is not None for word in (f"--{name}", *str(value).split(" "))),
    ]


def manifest(number: int, run: str = "run") -> dict[str, Any]:
    found: dict[str, Any] = json.loads(Path(f"{run}/round-00{number}/manifest.json").read_text())
    return found


def same_end(run: str, whole: str = "whole", rounds: int = 2) -> None:
    """Manifests, responses, evaluations and weights are equal, bit for bit."""
    for number in range(rounds):
        for name in ("manifest.json", "responses.jsonl", "evaluation.jsonl", "evaluation.json"):
            ours, theirs = (Path(f"{folder}/round-00{number}/{name}").read_text() for folder in (run, whole))
            assert ours == theirs, f"round {number}: {name}"
    name = next(path.name for path in Path(whole).glob("*model.safetensors"))
    ours, theirs = (load_file(f"{folder}/{name}") for folder in (run, whole))
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


class Killed(BaseException):
    """What no code of ours catches."""


def stopping(function: Callable[..., Any], after: int) -> Callable[..., Any]:
    """A function that is killed once it has been called `after` times."""
    calls: list[int] = []

    def stops(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) > after:
            raise Killed
        return function(*args, **kwargs)

    return stops


ODD = """
def flat(completions, **kwargs):
    return [1.0] * len(completions)

def some(completions, **kwargs):
    return [None if row % 3 == 0 else float(row) for row, _ in enumerate(completions)]

def none(completions, **kwargs):
    return [None] * len(completions)

def fails(completions, **kwargs):
    raise KeyError("no")

def fails_on_held_out(prompts, completions, **kwargs):
    if "label" in kwargs:
        raise KeyError("no")
    return [float(len(text)) for text in completions]

async def state(completions, trainer_state, **kwargs):
    return [float(len(text)) + trainer_state.global_step for text in completions]

def down(completions, **kwargs):
    return [-float(row % 4 > 1) for row, _ in enumerate(completions)]

def up(completions, **kwargs):
    return [float(row % 4 > 1) for row, _ in enumerate(completions)]
"""
