"""The data of `experiments.pairs`: preference pairs of the sandbox with a known share of wrong labels, and fresh test prompts.

The exact reward orders the annotator's pairs, then a share of them is flipped at random, for validation as for training.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

from experiments.label_noise import exact_pairs

from frugalign import sandbox
from frugalign.base.files import write_atomic
from frugalign.sandbox.world import make_prompts

SIZES = {"train": 1000, "validation": 200}
_TEST_SEED = 97_001
"""Of the test prompts. No other experiment uses it."""


def pairs_folder(work: Path, noise: float, seed: int, sizes: dict[str, int] = SIZES) -> Path:
    """A folder with `train.jsonl` and `validation.jsonl`, drawn by `seed`."""
    folder = work / f"{noise:g}-{seed}"
    for split, size in sizes.items():
        if not (folder / f"{split}.jsonl").is_file():
            rows = exact_pairs(split, size, noise, seed)
            write_atomic(folder / f"{split}.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    return folder


def read_rows(file: Path) -> list[dict[str, Any]]:
    """The rows of a JSON-lines file."""
    return [json.loads(line) for line in file.read_text("utf-8").splitlines()]


@cache
def validation_prompts(size: int) -> list[str]:
    """Prompts on which settings are shown, not chosen."""
    return [row["prompt"] for row in read_rows(Path(sandbox.study_prompts()) / "validation.jsonl")[:size]]


@cache
def test_prompts(size: int) -> list[str]:
    """Prompts that nothing in this repository has read: combinations that training never contains, without the shipped and the study's ones."""
    files = [Path(sandbox.prompts) / "test.jsonl", Path(sandbox.study_prompts()) / "test.jsonl"]
    known = {row["prompt"] for file in files for row in read_rows(file)}
    fresh = [str(row["prompt"]) for row in make_prompts("test", 4 * size, _TEST_SEED)]
    return [prompt for prompt in fresh if prompt not in known][:size]
