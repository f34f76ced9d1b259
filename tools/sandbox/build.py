"""Rebuild the sandbox: `python -m tools.sandbox.build [--folder DIR] [--only PART]`.

Writes prompts, tokenizer, language model, reward model and FROZEN.json in about nine minutes on two cores. Weights
are stored in bfloat16. Without `--folder` the files go to `sandbox-build/`; copy them over the package's own.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import PreTrainedModel

from frugalign.sandbox.annotating import AnnotatingSettings, comparison_accuracy, train_reward_model
from frugalign.sandbox.pretraining import PretrainingSettings, pretrain
from frugalign.sandbox.tokenizing import build_tokenizer
from frugalign.sandbox.world import Split, make_prompts
from tools.sandbox.frozen import write_hashes

PARTS: tuple[str, ...] = ("prompts", "model", "reward_model", "freeze")
SIZES: dict[Split, int] = {"train": 2400, "test": 600}


def save_bfloat16(model: PreTrainedModel, folder: Path) -> None:
    """Save in bfloat16. The files are half as large, and loaders read back exactly these values."""
    torch.nn.Module.to(model, dtype=torch.bfloat16)
    model.save_pretrained(folder)


def build_prompts(folder: Path, seed: int = 0) -> None:
    """`prompts/train.jsonl` and `prompts/test.jsonl`."""
    (folder / "prompts").mkdir(parents=True, exist_ok=True)
    for split, n in SIZES.items():
        rows = make_prompts(split, n, seed)
        (folder / "prompts" / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def build_model(folder: Path, settings: PretrainingSettings) -> None:
    """`model/`: weights, config, tokenizer."""
    tokenizer = build_tokenizer()
    model = pretrain(tokenizer, settings)
    save_bfloat16(model, folder / "model")
    tokenizer.save_pretrained(folder / "model")


def build_reward_model(folder: Path, settings: AnnotatingSettings) -> None:
    """`reward_model/`: weights, config, tokenizer."""
    tokenizer = build_tokenizer()
    model = train_reward_model(tokenizer, settings)
    print("reward model, held-out accuracy:", comparison_accuracy(model, tokenizer, 2000, seed=7))
    save_bfloat16(model, folder / "reward_model")
    tokenizer.save_pretrained(folder / "reward_model")


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of the module."""
    parser = argparse.ArgumentParser(prog="python -m tools.sandbox.build", description="Rebuild the sandbox.")
    parser.add_argument("--folder", type=Path, default=Path("sandbox-build"), help="where to write")
    parser.add_argument("--only", choices=PARTS, help="build one part only")
    chosen = parser.parse_args(arguments)
    parts = [chosen.only] if chosen.only else list(PARTS)
    start = time.monotonic()
    if "prompts" in parts:
        build_prompts(chosen.folder)
    if "model" in parts:
        build_model(chosen.folder, PretrainingSettings())
    if "reward_model" in parts:
        build_reward_model(chosen.folder, AnnotatingSettings())
    if "freeze" in parts:
        write_hashes(chosen.folder)
    print(f"{', '.join(parts)} written to {chosen.folder} in {time.monotonic() - start:.0f} s")


if __name__ == "__main__":
    main()
