"""The best evaluation of a proxy, which is kept."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn

from frugalign.base.files import write_atomic

BEST_FILE = "best.safetensors"


@dataclass
class Best:
    """The weights with the lowest validation loss so far. `since`: evaluations without a better one."""

    patience: int
    loss: float = math.inf
    step: int = 0
    since: int = 0
    weights: dict[str, Tensor] = field(default_factory=dict)

    def observe(self, loss: float, step: int, proxy: nn.Module) -> None:
        """Keep the weights if this evaluation is the best."""
        if loss < self.loss:
            self.loss, self.step, self.since = loss, step, 0
            self.weights = {name: value.detach().cpu().clone() for name, value in proxy.state_dict().items()}
        else:
            self.since += 1

    @property
    def is_over(self) -> bool:
        """Whether training should stop."""
        return 0 < self.patience <= self.since

    @torch.no_grad()
    def restore(self, proxy: nn.Module) -> None:
        """Put the best weights into the proxy, if there are any and `patience` asks for them."""
        if self.patience and self.weights:
            proxy.load_state_dict(self.weights)

    def state(self) -> dict[str, Any]:
        """JSON-ready, without the weights."""
        return {"loss": None if math.isinf(self.loss) else self.loss, "step": self.step, "since": self.since}

    def load_state(self, state: dict[str, Any]) -> None:
        """Restore what `state` returned."""
        loss = state["loss"]
        self.loss, self.step, self.since = math.inf if loss is None else loss, state["step"], state["since"]

    def save(self, folder: Path) -> None:
        """Write the weights into a checkpoint."""
        if self.weights:
            write_atomic(folder / BEST_FILE, save({name: value.contiguous() for name, value in self.weights.items()}))

    def load(self, folder: Path) -> None:
        """Read the weights from a checkpoint."""
        self.weights = load_file(folder / BEST_FILE) if (folder / BEST_FILE).exists() else {}
