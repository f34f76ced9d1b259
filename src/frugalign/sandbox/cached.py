"""Sandbox data written on first use: the annotator's preference pairs, and prompts for studies.

The files go to `FRUGALIGN_CACHE` or ~/.cache/frugalign."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from frugalign.base.files import write_atomic
from frugalign.sandbox.world import Split, make_prompts

SIZES = {"train": 4000, "test": 1000}
PROMPTS: dict[str, tuple[Split, int, int]] = {
    "train": ("train", 2000, 81_000),
    "validation": ("train", 256, 81_001),
    "test": ("test", 600, 81_002),
}
"""Prompts of a study: the grammar's split, how many, and the seed."""
_VERSION = 1


def pairs() -> str:
    """A folder with `train.jsonl` and `test.jsonl` of prompt, chosen and rejected. About one label in six is wrong.

    The test orders use combinations that never occur in training.
    """
    folder = _cached("sandbox-pairs")
    for split, size in SIZES.items():
        if not (folder / f"{split}.jsonl").is_file():
            _write(folder, split, sample_pairs(split, size))
    return str(folder)


def study_prompts() -> str:
    """A folder with `train.jsonl`, `validation.jsonl` and `test.jsonl`, with the columns of the shipped prompts.

    No setting in this repository was chosen on these test prompts. Their combinations never occur in training. The
    shipped test prompts, in contrast, have been looked at.
    """
    folder = _cached("sandbox-study-prompts")
    if all((folder / f"{split}.jsonl").is_file() for split in PROMPTS):
        return str(folder)
    shipped = Path(__file__).parent / "prompts" / "test.jsonl"
    known = {json.loads(line)["prompt"] for line in shipped.read_text(encoding="utf-8").splitlines()}
    for name, (split, size, seed) in PROMPTS.items():
        rows = [row for row in make_prompts(split, 2 * size, seed) if row["prompt"] not in known][:size]
        _write(folder, name, rows)
        known |= {str(row["prompt"]) for row in rows}
    return str(folder)


def _cached(name: str) -> Path:
    return Path(os.environ.get("FRUGALIGN_CACHE", Path.home() / ".cache" / "frugalign")) / f"{name}-{_VERSION}"


def _write(folder: Path, split: str, rows: Sequence[Mapping[str, Any]]) -> None:
    write_atomic(folder / f"{split}.jsonl", "".join(json.dumps(row) + "\n" for row in rows))


def sample_pairs(split: str, size: int, seed: int = 0) -> list[dict[str, str]]:
    """`size` pairs of one split, reproducible by seed."""
    # It loads transformers, which a folder that exists already does without.
    from frugalign.sandbox.annotating import AnnotatingSettings, sample_comparison

    rng = random.Random(f"{split}-{seed}")
    settings = AnnotatingSettings()
    found: list[dict[str, str]] = []
    while len(found) < size:
        comparison = sample_comparison(rng, cast(Split, split), settings)
        chosen, rejected = comparison.chosen.text(), comparison.rejected.text()
        if chosen != rejected:
            found.append({"prompt": comparison.request.text(), "chosen": chosen, "rejected": rejected})
    return found
