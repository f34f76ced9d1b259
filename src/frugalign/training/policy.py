"""The policy that a method trains: a LoRA by default, and how it is left in the run folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from peft import LoraConfig

from frugalign.artifacts import model_card, write_atomic
from frugalign.ledger import Ledger
from frugalign.training.run_folder import COSTS_FILE, saving


def lora_of(options: Any) -> LoraConfig:
    """A LoRA on all linear layers of a causal LM, of `options.lora_r` and `options.lora_alpha`."""
    return LoraConfig(
        r=options.lora_r, lora_alpha=options.lora_alpha, target_modules="all-linear", task_type="CAUSAL_LM"
    )


def save_policy(
    policy: Any, tokenizer: Any, args: Any, ledger: Ledger, folder: Path, *, done: str, description: str
) -> None:
    """Write the adapter or the model, its card and the costs into the run folder. `done`: what happened to it, in a word or two."""
    with saving(folder / "model.safetensors"):
        policy.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    kind = "adapter" if args.use_peft else "policy"
    card = model_card(
        title=f"{args.model_name_or_path or 'a causal language model'}, {done}",
        description=description,
        base_model=str(args.model_name_or_path or ""),
        settings=args.options(),
        costs=ledger.table(),
        usage=f"frugalign evaluate --model_name_or_path {args.model_name_or_path} --{kind} {folder} --dataset_name PROMPTS --reward REWARD",
    )
    write_atomic(folder / "README.md", card)
    ledger.save(folder / COSTS_FILE)
