"""Preference pairs of the sandbox with a known share of wrong labels, for `studies/label-noise.yaml`.

The exact reward orders the annotator's pairs, then a quarter of them is flipped at random, in every split. The pairs are built once, under
runs/tasks/label-noise.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from frugalign.base.files import write_atomic
from frugalign.sandbox.annotating import AnnotatingSettings, sample_comparison
from frugalign.sandbox.judging import judge

WORK = Path("runs/tasks/label-noise")
NOISE = 0.25
SPLITS = ("train", "validation", "test")
SIZE, SEED = 1000, 11


def exact_pairs(split: str, size: int, noise: float, seed: int = SEED) -> list[dict[str, str]]:
    """`size` pairs ordered by the exact reward, without ties. A share `noise` of them is flipped."""
    rng, flips = random.Random(f"noise-{split}-{seed}"), random.Random(f"flip-{split}-{seed}")
    found: list[dict[str, str]] = []
    while len(found) < size:
        pair = sample_comparison(rng, "train", AnnotatingSettings())
        prompt, better, worse = pair.request.text(), pair.chosen.text(), pair.rejected.text()
        gap = judge(prompt, better).reward - judge(prompt, worse).reward
        if gap == 0:
            continue
        if (gap < 0) != (flips.random() < noise):
            better, worse = worse, better
        found.append({"prompt": prompt, "chosen": better, "rejected": worse})
    return found


def _pairs(noise: float) -> str:
    folder = WORK / f"{noise:g}"
    for split in SPLITS:
        if not (folder / f"{split}.jsonl").is_file():
            rows = exact_pairs(split, SIZE, noise)
            write_atomic(folder / f"{split}.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    return str(folder)


def noisy_pairs() -> str:
    """Folder of pairs with a quarter of the labels flipped."""
    return _pairs(NOISE)


def clean_pairs() -> str:
    """Folder of the same pairs with correct labels."""
    return _pairs(0.0)


def well_formed(prompts: list[Any], completions: list[Any], **_: Any) -> list[float]:
    """Whether the grammar can parse the reply."""
    return [float(judge(prompt, text).well_formed) for prompt, text in zip(prompts, completions, strict=True)]
