"""Preference pairs of the sandbox's annotator, written on first use: `--dataset_name frugalign.sandbox:pairs`."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path
from typing import cast

from frugalign.artifacts import write_atomic
from frugalign.sandbox.annotating import AnnotatingSettings, sample_comparison
from frugalign.sandbox.world import Split

SIZES = {"train": 4000, "test": 1000}
_VERSION = 1


def pairs() -> str:
    """A folder with `train.jsonl` and `test.jsonl` of prompt, chosen and rejected; about every sixth label is wrong.

    The test orders are of combinations that training never sees. Written once, under `FRUGALIGN_CACHE` or ~/.cache/frugalign.
    """
    cache = Path(os.environ.get("FRUGALIGN_CACHE", Path.home() / ".cache" / "frugalign"))
    folder = cache / f"sandbox-pairs-{_VERSION}"
    for split, size in SIZES.items():
        path = folder / f"{split}.jsonl"
        if not path.is_file():
            write_atomic(path, "".join(json.dumps(row) + "\n" for row in sample_pairs(split, size)))
    return str(folder)


def sample_pairs(split: str, size: int, seed: int = 0) -> list[dict[str, str]]:
    """`size` pairs of one split, the same ones for the same seed."""
    rng = random.Random(f"{split}-{seed}")
    settings = AnnotatingSettings()
    found: list[dict[str, str]] = []
    while len(found) < size:
        comparison = sample_comparison(rng, cast(Split, split), settings)
        chosen, rejected = comparison.chosen.text(), comparison.rejected.text()
        if chosen != rejected:
            found.append({"prompt": comparison.request.text(), "chosen": chosen, "rejected": rejected})
    return found
