"""What a `PSLETrainer` is given, loaded and checked: the policy and the principles."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from peft import PeftModel
from safetensors import SafetensorError
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from frugalign.base.errors import FrugalignError
from frugalign.engines.loading import load_model, prepare_tokenizer
from frugalign.methods.carriers import Carrier, weights_digest
from frugalign.methods.log_probs import disable_dropout
from frugalign.methods.psle.config import PSLEConfig
from frugalign.options.loading import policy_arguments
from frugalign.policies.principles import Principles, load_principles
from frugalign.runs.layout import Manifest


def load_policy(
    model: PreTrainedModel | str,
    tokenizer: PreTrainedTokenizerBase | None,
    args: PSLEConfig,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model on its device, without dropout, and a tokenizer that is ready for batches."""
    if isinstance(model, str):
        loaded = load_model(model, **policy_arguments(args, trains_every_weight=args.train == "full"))
        model, tokenizer = loaded.model, tokenizer or loaded.tokenizer
    if tokenizer is None:
        raise FrugalignError("PSLETrainer needs processing_class (the tokenizer) where model is a module.")
    policy: Any = model
    if isinstance(policy, PeftModel):
        raise FrugalignError("The model has an adapter already; merge it first (merge_and_unload).")
    prepare_tokenizer(tokenizer)
    if getattr(policy, "hf_device_map", None) is None:
        policy.to(args.device)
    disable_dropout(policy)
    return policy, tokenizer


def principles_of(given: Principles | str | None, args: PSLEConfig) -> Principles | None:
    """The given principles, or those that `args` names; None if the method samples without any."""
    found = given if given is not None else args.principles
    if not args.needs_principles:
        return None
    if found is None:
        raise FrugalignError("principles is missing: give a shipped set or a file, or no_use_principles.")
    return load_principles(found) if isinstance(found, str) else found


def restore_policy(carrier: Carrier, folder: Path, manifest: Manifest) -> None:
    """Load the policy that a finished round saved.

    Raises:
        FrugalignError: it cannot be loaded, or is not the one of the manifest.
    """
    try:
        carrier.load(folder)
        is_whole = weights_digest(carrier.policy) == manifest["end"]["weights"]
    except (OSError, ValueError, RuntimeError, LookupError, TypeError, SafetensorError, FrugalignError):
        is_whole = False
    if not is_whole:
        raise FrugalignError(
            f"The policy in {folder} is damaged: train this round again (from_round {manifest['round']})."
        )
