"""What a launcher says. How `accelerate launch` was told to shard the model, for a method that trains a proxy: its frozen base is sharded like that, and the
proxy is not. And whether several processes run on a CPU. No torch until it is asked."""

from __future__ import annotations

import os
from typing import Any

_FSDP, _MESH = "ACCELERATE_USE_FSDP", "ACCELERATE_USE_PARALLELISM_CONFIG"
_SIZES = {"tp_size": "PARALLELISM_CONFIG_TP_SIZE", "fsdp_size": "PARALLELISM_CONFIG_DP_SHARD_SIZE"}


def several_on_cpu() -> bool:
    """Whether torchrun started several processes on a machine without an accelerator. accelerate does not see them by itself."""
    import torch

    return int(os.environ.get("WORLD_SIZE", 1)) > 1 and not torch.accelerator.is_available()


def shard_the_base(config: Any) -> None:
    """Turn accelerate's FSDP or parallelism config, or transformers' `fsdp`, into `tp_size` or `fsdp_size`, unless these are given.

    Trainer would apply them to what it trains. Other methods than those of a proxy leave them to it.
    """
    if not hasattr(config, "fsdp_size") or getattr(config, "train", "proxy") != "proxy":
        return
    wanted = {}
    if _is_on(_MESH):
        wanted = {name: int(os.environ.get(variable, 1)) for name, variable in _SIZES.items()}
    if _is_on(_FSDP) or getattr(config, "fsdp", None):
        wanted = {"fsdp_size": int(os.environ.get("WORLD_SIZE", 1))} | {k: v for k, v in wanted.items() if v > 1}
    if not wanted:
        return
    if config.tp_size == 1 and config.fsdp_size == 1:
        for name, size in wanted.items():
            setattr(config, name, max(1, size))
    config.fsdp = None
    for variable in (_FSDP, _MESH):
        if variable in os.environ:
            os.environ[variable] = "false"


def _is_on(variable: str) -> bool:
    return os.environ.get(variable, "false").lower() in ("true", "1")
