"""The trained weights and their starting model: a new LoRA, a given adapter, or every weight.

Another kind of trained weights, such as a proxy, belongs here. A carrier scores answers under the policy and under its start.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft import PeftModel, get_peft_model
from torch import Tensor, nn

from frugalign.base.errors import FrugalignError
from frugalign.engines.transformers import evaluating
from frugalign.methods.log_probs import Reading, Scored, disable_dropout, score_answers
from frugalign.runs.save_policy import lora_of


class Carrier(ABC):
    """A policy in training.

    `policy`: the module that Trainer optimises and saves. `copies_start`: whether keeping the starting model needs a copy.
    """

    policy: Any
    copies_start = False

    def score(self, model: nn.Module, batch: dict[str, Tensor], reading: Reading | None) -> Scored:
        """Score the answers under the current policy. `model`: the policy as wrapped by Trainer."""
        return score_answers(model, self.policy, batch, reading)

    @abstractmethod
    def start(self) -> Any:
        """A context manager that yields the model before training."""

    def begin(self) -> None:  # noqa: B027 — most carriers have nothing to do
        """Called when training begins. From now on the policy differs from its start."""

    @torch.no_grad()
    def score_before(self, batch: dict[str, Tensor]) -> Tensor:
        """Log-probabilities of the answers `[M]` under the model before training."""
        with self.start() as model, evaluating(model):
            return score_answers(model, model, batch).sums


class Lora(Carrier):
    """A new LoRA. The start is the model without it."""

    def __init__(self, model: Any, args: Any) -> None:
        self.policy = get_peft_model(model, lora_of(args))

    @contextmanager
    def start(self) -> Iterator[Any]:
        """The policy with its adapter disabled."""
        with self.policy.disable_adapter():
            yield self.policy


class GivenAdapter(Carrier):
    """An adapter that the model already had. The start is the model with the adapter's initial weights."""

    def __init__(self, model: Any) -> None:
        self.policy = model
        self._before = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}

    @contextmanager
    def start(self) -> Iterator[Any]:
        """The policy with the adapter's initial weights."""
        trained = {name: p for name, p in self.policy.named_parameters() if name in self._before}
        now = {name: p.data for name, p in trained.items()}
        try:
            for name, p in trained.items():
                p.data = self._before[name].to(p.device)
            yield self.policy
        finally:
            for name, p in trained.items():
                p.data = now[name]


class EveryWeight(Carrier):
    """Every weight. The start is a frozen copy; without one, it is lost after the first step."""

    copies_start = True

    def __init__(self, model: Any, *, keeps_start: bool) -> None:
        self.policy = model
        # Copy the model in memory, since loading it by name might give another revision.
        self.copy = copy.deepcopy(model).requires_grad_(False).eval() if keeps_start else None
        self.has_moved = False

    def begin(self) -> None:
        """Until then, the policy itself is the start."""
        self.has_moved = True

    @contextmanager
    def start(self) -> Iterator[Any]:
        """The copy, or the policy itself before the first step.

        Raises:
            FrugalignError: the starting weights are lost.
        """
        if self.copy is not None:
            device = next(self.policy.parameters()).device
            if getattr(self.copy, "hf_device_map", None) is None and next(self.copy.parameters()).device != device:
                self.copy.to(device)
            yield self.copy
        elif self.has_moved:
            raise FrugalignError(
                "The weights before training are gone: give precompute_ref_log_probs false, which keeps a copy of them."
            )
        else:
            yield self.policy


def carrier_of(model: Any, args: Any, *, keeps_start: bool) -> Carrier:
    """The carrier that `args` selects for this model."""
    if isinstance(model, PeftModel):
        return GivenAdapter(model)
    return Lora(model, args) if args.train == "lora" else EveryWeight(model, keeps_start=keeps_start)


def prepare_policy(policy: Any, args: Any, pad_token_id: int) -> None:
    """Prepare the policy of any carrier for training."""
    if args.disable_dropout:
        disable_dropout(policy)
    # Saved with the model, for whoever loads it.
    policy.config.get_text_config().pad_token_id = pad_token_id
    if getattr(policy, "generation_config", None) is not None:
        policy.generation_config.pad_token_id = pad_token_id
    adapted = isinstance(policy, PeftModel)
    if adapted and args.gradient_checkpointing:
        # The embeddings are frozen. Without this, the checkpointed layers get no input with a gradient.
        policy.enable_input_require_grads()
    if getattr(policy, "is_loaded_in_4bit", False) or getattr(policy, "is_loaded_in_8bit", False):
        # As in QLoRA (Dettmers et al. 2023). DoRA's magnitudes change by less than bfloat16 resolves.
        for name, parameter in policy.named_parameters():
            if parameter.requires_grad and "lora_magnitude_vector" not in name:
                parameter.data = parameter.data.to(torch.bfloat16)
