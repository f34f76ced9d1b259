"""A steering vector: one vector that is added to the hidden states of one layer, at every position. Nothing else changes.

The vector is the difference of mean states between good and bad answers (Rimsky et al., 2024, arXiv 2312.06681; Zou et al., 2023, arXiv
2310.01405). It is added to `hidden_states[layer]` of the prompt too, so a text has the same states whether it is sampled or read. That
makes the KL to the base exact. `frugalign.methods.steering` fits it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers import initialization as init

from frugalign.engines.artefacts import ArtefactKind, SealedModel, load_artefact
from frugalign.engines.states import steered_block
from frugalign.options.kinds import COUNT, FINITE


class SteeringConfig(PreTrainedConfig):
    """The layer, the strength that was chosen for it, and where the vector comes from. `base` and `trained_on` describe model and data."""

    model_type = "frugalign_steering"

    width: int = 64
    layer: int = 1
    strength: float = 1.0
    base: dict[str, Any] | None = None
    trained_on: dict[str, Any] | None = None
    sha256: str | None = None


class SteeringModel(SealedModel):
    """The difference of means, `vector [D]`. `config.strength` times it is what is added."""

    config_class = SteeringConfig
    base_model_prefix = "steering"

    def __init__(self, config: SteeringConfig) -> None:
        super().__init__(config)
        self.vector = nn.Parameter(torch.empty(config.width))
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if module is self:
            init.zeros_(self.vector)

    def forward(self, states: Tensor) -> Tensor:
        """`states [..., D]`, steered."""
        steered: Tensor = states + (self.config.strength * self.vector).to(states)
        return steered


STEERING = ArtefactKind(
    "steering vector", SteeringConfig, SteeringModel, kinds={"width": COUNT, "layer": COUNT, "strength": FINITE}
)


def load_steering(folder: str | Path) -> SteeringModel:
    """Load a steering vector strictly, from a folder or a hub id.

    Raises:
        FrugalignError: a file is missing, truncated or damaged.
    """
    found: SteeringModel = load_artefact(STEERING, folder)
    return found


class Steering:
    """A steering vector on a model. The model is steered inside `on()`, except inside `off()`.

    Args:
        strength: λ, which multiplies the vector's own strength. 0 is the base.

    Raises:
        FrugalignError: the model has no such layer.
    """

    def __init__(self, model: PreTrainedModel, network: SteeringModel, strength: float = 1.0) -> None:
        self._block = steered_block(model, network.config.layer)
        self._added = (strength * network.config.strength * network.vector).detach()
        self._is_off = False

    @contextmanager
    def on(self) -> Iterator[None]:
        """Steer the model inside the block."""
        # First, so that transformers' own hook records the steered states.
        handle = self._block.register_forward_hook(self._add, prepend=True)
        try:
            yield
        finally:
            handle.remove()

    @contextmanager
    def off(self) -> Iterator[None]:
        """Leave the model unsteered inside the block, also within `on()`."""
        was_off, self._is_off = self._is_off, True
        try:
            yield
        finally:
            self._is_off = was_off

    def _add(self, block: nn.Module, inputs: Any, output: Any) -> Any:
        if self._is_off:
            return output
        if isinstance(output, tuple):  # the states, and what else the block returns
            return (output[0] + self._added.to(output[0]), *output[1:])
        return output + self._added.to(output)
