"""From model options to the keyword arguments of `load_model`. No torch."""

from __future__ import annotations

from typing import Any


def model_arguments(options: Any) -> dict[str, Any]:
    """Keyword arguments of `load_model` for the model that `options` names."""
    return {
        "revision": options.revision,
        "dtype": options.dtype,
        "device_map": options.device_map or ("cpu" if options.use_cpu else None),
        "load_in_4bit": options.load_in_4bit,
        "adapter": getattr(options, "adapter", None),
        "tp_size": getattr(options, "tp_size", 1),
        "fsdp_size": getattr(options, "fsdp_size", 1),
    }


def policy_arguments(options: Any, *, trains_every_weight: bool) -> dict[str, Any]:
    """`model_arguments` for a model to be trained. Full fine-tuning defaults to float32: bfloat16 rounds away most
    small updates."""
    found = model_arguments(options)
    return found | {"dtype": found["dtype"] or "float32"} if trains_every_weight else found
