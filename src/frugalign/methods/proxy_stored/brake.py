"""The weight of the KL to the base, constant or moved towards a target, and the best evaluation, which is kept."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn

from frugalign.base.files import write_atomic

_GAIN = 0.1
_RECENT = 0.8
BEST_FILE = "best.safetensors"


@dataclass
class Brake:
    """Moves `log weight` by `0.1·log(kl/target)` a step, at most 0.1. Without a target it is constant.

    `kl` is a running mean in nats per answer. While it rises towards the target, the weight does not fall.

    A training by reward has rules of its own (`proxy_rlhf/kl_control.py`), with larger moves: it observes a whole rollout, a few dozen times, and a trust
    region bounds the KL meanwhile. Here a step is a noisy batch, so the KL is a running mean, and the moves are small and many.
    """

    weight: float
    target: float | None
    recent: float | None = None

    def observe(self, kl: float) -> None:
        """Change the weight after a step with this mean KL."""
        if self.target is None:
            return
        before, self.recent = self.recent, kl if self.recent is None else _RECENT * self.recent + (1 - _RECENT) * kl
        far = max(-1.0, min(1.0, math.log(max(self.recent, 1e-9) / self.target)))
        rises = before is None or self.recent > before
        if far > 0 or not rises:
            self.weight *= math.exp(_GAIN * far)


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
