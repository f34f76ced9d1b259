"""What stored features cost: seconds and bytes for 1,000 pairs, by the base's width and vocabulary, and memory up to 100,000 pairs.

    python -m experiments.stored_cost [--sizes 1000 10000 100000] [--smoke]

The bases are random Llamas of two layers with the sandbox's tokenizer and padded vocabularies. A random base proposes more tokens than a trained one, so the
last row has the sandbox's own model. Rows of the sandbox's pairs repeat, and a number in the prompt makes them differ.
"""

from __future__ import annotations

import re
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from experiments.label_noise import exact_pairs
from experiments.pairs_curve import load_sandbox
from experiments.summary import script_options, write_summary
from transformers import LlamaConfig, LlamaForCausalLM

from frugalign.engines.loading import LoadedModel
from frugalign.methods.proxy_stored.config import StoredProxyConfig
from frugalign.methods.proxy_stored.trainer import StoredProxyTrainer

SIZES = (1_000, 10_000, 100_000)
WIDTHS, VOCABULARIES = (128, 512, 2048), (257, 8_192, 65_536)
FEW = 100
"""Pairs of a row by width or vocabulary."""
STEPS, HELD_OUT = 40, 16


def random_base(width: int, vocabulary: int, layers: int = 2) -> LoadedModel:
    """A base that has learned nothing. Its output embeddings are large enough that it prefers some tokens."""
    torch.manual_seed(0)
    given = load_sandbox()
    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=width, intermediate_size=2 * width, num_hidden_layers=layers, num_attention_heads=4,
        max_position_embeddings=192, bos_token_id=given.tokenizer.bos_token_id, eos_token_id=given.tokenizer.eos_token_id,
        pad_token_id=given.tokenizer.pad_token_id, initializer_range=0.2,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval().requires_grad_(False)
    model.generation_config.eos_token_id = config.eos_token_id
    return LoadedModel(model, given.tokenizer, f"random-{width}-{vocabulary}", None)


def pairs(size: int) -> Dataset:
    """Pairs of the sandbox, repeated under other prompts."""
    known = exact_pairs("train", min(size, 1_000), 0.0, 1)
    return Dataset.from_list(
        [known[row % len(known)] | {"prompt": f"{known[row % len(known)]['prompt']} {row}"} for row in range(size)]
    )


@contextmanager
def peak() -> Iterator[dict[str, float]]:
    """`MB`: how far the process's memory rises within the block (Linux)."""
    found: dict[str, float] = {}
    before = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5", "ascii")
    yield found
    found["MB"] = (_status("VmHWM") - before) / 1000


def _status(name: str) -> float:
    """A line of this process's status, in kB."""
    found = re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text("ascii"))
    return float(found[1]) if found else 0.0


def measured(base: LoadedModel, data: Dataset, work: Path, steps: int) -> dict[str, Any]:
    """Read `data` once through the base, then train for some steps."""
    args = StoredProxyConfig(
        output_dir=str(work / "run"), overwrite_output_dir=True, cache_dir=str(work / "features"), use_cpu=True, report_to="none",
        save_strategy="no", disable_tqdm=True, max_steps=steps, per_device_train_batch_size=16, max_new_tokens=64, logging_steps=steps,
    )  # fmt: skip
    with peak() as memory:
        started = time.process_time()
        trainer = StoredProxyTrainer(base, args, data, data.select(range(HELD_OUT)))
        reading = time.process_time() - started
        started = time.process_time()
        trainer.train()
        training = time.process_time() - started
    size = sum(file.stat().st_size for file in (work / "features").rglob("*.safetensors"))
    thousands = len(data) / 1000
    tokens = trainer.ledger.lm_forward_tokens
    return {
        "seconds for 1,000 pairs": reading / thousands,
        "MB for 1,000 pairs": size / 1e6 / thousands,
        "tokens fed, thousands": tokens / 1000,
        "ms a step": 1000 * training / steps,
        "memory, MB": memory["MB"],
    }


def main() -> None:
    args = script_options(__doc__, **{"--sizes": {"nargs": "*", "type": int, "default": list(SIZES)}})
    is_smoke = args.smoke
    rows: dict[str, dict[str, Any]] = {}
    wanted: dict[str, tuple[LoadedModel, int]] = {}
    for width in WIDTHS[:1] if is_smoke else WIDTHS:
        wanted[f"width {width:,}"] = (random_base(width, VOCABULARIES[0]), FEW)
    for vocabulary in VOCABULARIES[1:2] if is_smoke else VOCABULARIES[1:]:
        wanted[f"vocabulary {vocabulary:,}"] = (random_base(WIDTHS[0], vocabulary), FEW)
    wanted["sandbox"] = (load_sandbox(), SIZES[0])
    small = random_base(32, VOCABULARIES[0], layers=1)
    for size in args.sizes:
        wanted[f"{size:,} pairs"] = (small, size)
    for label, (base, size) in wanted.items():
        with tempfile.TemporaryDirectory() as folder:
            rows[label] = measured(
                base, pairs(min(size, 20) if is_smoke else size), Path(folder), 2 if is_smoke else STEPS
            )
        print(label, rows[label], flush=True)
    if not is_smoke:
        model = "random Llamas, and frugalign.sandbox:model"
        command = f"python -m experiments.stored_cost --sizes {' '.join(map(str, args.sizes))}"
        write_summary("stored-cost", command, model, rows, {"widths of the pairs rows": 32})


if __name__ == "__main__":
    main()
