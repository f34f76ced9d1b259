"""A batch of pairs on its way through TRL's loss: our columns beside TRL's, and what its own forward passes compute."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from trl.trainer.dpo_trainer import DataCollatorForPreference

from frugalign.engines.transformers import causal_lm

COLUMNS = ("confidence", "weight")


@dataclass
class PairCollator(DataCollatorForPreference):
    """TRL's, with our columns beside; a row without one of them has NaN confidence and weight 1."""

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        batch: dict[str, Any] = super().torch_call(examples)
        for name, default in zip(COLUMNS, (float("nan"), 1.0), strict=True):
            if any(name in example for example in examples):
                values = [example.get(name) for example in examples]
                batch[name] = torch.tensor([default if value is None else float(value) for value in values])
        return batch


@dataclass
class Caught:
    """Summed log-probabilities of each forward pass, the policy's first, and the policy's endpoint states `[2B, layers, D]`."""

    log_probs: list[Tensor] = field(default_factory=list)
    states: Tensor | None = None


@contextmanager
def caught_passes(policy: Any, reference: Any, completion_mask: Tensor, layers: list[int]) -> Iterator[Caught]:
    """Hooks on the models for the length of one loss; gone before the backward pass, where checkpointing runs the forward again."""
    caught = Caught()
    length = completion_mask.shape[1] - 1
    end = (completion_mask * torch.arange(completion_mask.shape[1], device=completion_mask.device)).argmax(1)
    rows = torch.arange(len(end), device=end.device)

    def keep_log_probs(module: nn.Module, args: Any, output: Any) -> None:
        caught.log_probs.append(output.log_probs[:, -length:].sum(1))

    def ask_for_states(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        # Of the policy's pass, which is the first; the reference's states would be kept for nobody.
        return (args, kwargs | {"output_hidden_states": True}) if caught.states is None and layers else None

    def keep_states(module: nn.Module, args: Any, output: Any) -> None:
        if caught.states is None and layers:
            # A model may be spread over devices.
            at = [output.hidden_states[layer] for layer in layers]
            found = [states[rows.to(states.device), end.to(states.device)].detach().float() for states in at]
            caught.states = torch.stack([states.to(end.device) for states in found], 1)

    lm = causal_lm(policy)
    with ExitStack() as stack:
        stack.callback(lm.register_forward_hook(keep_log_probs).remove)
        stack.callback(lm.register_forward_pre_hook(ask_for_states, with_kwargs=True).remove)
        stack.callback(getattr(lm, lm.base_model_prefix).register_forward_hook(keep_states).remove)
        if reference is not None:
            stack.callback(causal_lm(reference).register_forward_hook(keep_log_probs).remove)
        yield caught
