"""One forward pass of a frozen model, returning its logits *and* what its LM head read to compute them.

The logits come from the model's own forward, so soft-capping and scaling are whatever the architecture does; the head's input
is caught by a pre-hook. A model whose head is fused away never calls the module, and is refused in one sentence.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from frugalign.base.errors import FrugalignError


def causal_lm(model: PreTrainedModel) -> PreTrainedModel:
    """The causal LM inside a PEFT wrapper, or the model itself."""
    if hasattr(model, "get_base_model"):
        peft: Any = model
        inner: PreTrainedModel = peft.get_base_model()
        return inner
    return model


def base_parameters(model: PreTrainedModel) -> int:
    """How many numbers the model holds without what a PEFT wrapper added to it."""
    whole = causal_lm(model)
    if whole is model:
        return int(whole.num_parameters())
    wrapper: Any = model
    added = (wrapper.base_model.prefix, ".modules_to_save.")
    return sum(value.numel() for name, value in whole.named_parameters() if not any(part in name for part in added))


def output_embeddings(model: PreTrainedModel) -> nn.Module:
    """The LM head: the module that turns hidden states `[..., D]` into logits `[..., V]`."""
    head = causal_lm(model).get_output_embeddings()
    if head is None:
        raise FrugalignError(f"{type(model).__name__} has no output embeddings, so nothing can guide it.")
    module: nn.Module = head
    return module


def head_weight(model: PreTrainedModel) -> Tensor:
    """The LM head's weight matrix, in whatever form it is stored."""
    weight = output_embeddings(model).weight
    if not isinstance(weight, Tensor):
        raise FrugalignError(f"The LM head of {type(model).__name__} has no weight matrix to read.")
    return weight


def embedding_rows(model: PreTrainedModel) -> Tensor:
    """Output-embedding rows `e_c`, float32 `[V, D]`; a 4-bit head is read back through its own dequantiser."""
    weight: Any = head_weight(model)
    if not weight.is_floating_point():
        import bitsandbytes as bnb

        weight = bnb.functional.dequantize_4bit(weight.data, weight.quant_state)
    rows: Tensor = weight.detach().float()
    return rows


@dataclass
class StepOutput:
    """`hidden [B, T', D]` float32 and `logits [B, T', V]` float32 at the last `T'` positions; the cache; all layers if asked."""

    hidden: Tensor
    logits: Tensor
    cache: Any
    layers: tuple[Tensor, ...] | None


class Forward:
    """Forward passes of one model with the LM head's input caught; a context manager that leaves no hook behind.

    The catch is kept per thread, so two threads may run the same model at the same time.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self._caught = threading.local()
        parameters = inspect.signature(causal_lm(model).forward).parameters
        self._takes_positions = "position_ids" in parameters
        self._takes_keep = "logits_to_keep" in parameters

    def __enter__(self) -> Forward:
        self._handle = output_embeddings(self.model).register_forward_pre_hook(self._catch)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._handle.remove()

    def _catch(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self._caught.hidden = inputs[0]

    def __call__(
        self,
        input_ids: Tensor,
        *,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        cache: Any = None,
        use_cache: bool = True,
        keep: int = 1,
        all_layers: bool = False,
    ) -> StepOutput:
        """Run the model on `input_ids [B, T]` and return its last `keep` positions.

        Raises:
            FrugalignError: where the model computed logits without calling its LM head.
        """
        arguments: dict[str, Any] = {"input_ids": input_ids, "attention_mask": attention_mask, "use_cache": use_cache}
        if self._takes_positions and position_ids is not None:
            arguments["position_ids"] = position_ids
        if self._takes_keep and keep < input_ids.shape[1]:
            arguments["logits_to_keep"] = keep
        if cache is not None:
            arguments["past_key_values"] = cache
        if all_layers:
            arguments["output_hidden_states"] = True
        self._caught.hidden = None
        output = self.model(**arguments)
        hidden = self._caught.hidden
        if hidden is None:
            raise FrugalignError(
                f"{type(causal_lm(self.model)).__name__} computes logits without calling its LM head (a fused head?), "
                "so its hidden states cannot be read."
            )
        self._caught.hidden = None
        if use_cache and not hasattr(output, "past_key_values"):
            raise FrugalignError(
                f"{type(causal_lm(self.model)).__name__} keeps no key-value cache, which the decoding loop works on."
            )
        return StepOutput(
            hidden=hidden[:, -keep:].float(),
            logits=output.logits[:, -keep:].float(),
            cache=output.past_key_values if use_cache else None,
            layers=output.hidden_states if all_layers else None,
        )


def device_of(model: PreTrainedModel) -> torch.device:
    """The device that takes the model's input ids."""
    embeddings: Any = causal_lm(model).get_input_embeddings()
    device: torch.device = embeddings.weight.device
    return device


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Without dropout for the length of a block, in whichever mode the model was before."""
    was_training = model.training
    if was_training:
        model.eval()
    try:
        yield
    finally:
        if was_training:
            model.train()
