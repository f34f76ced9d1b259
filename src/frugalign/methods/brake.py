"""What holds the KL of stored answers to the starting model: a constant weight in the loss, and a target.

A step after one beyond the target has the KL alone as its loss: a switching subgradient method (Polyak 1967). It reacts within a step, whereas a
weight that is adapted takes tens of them, and a proxy that has overshot far may be saturated and never return.

A training by reward has a controller of its own (`proxy_rlhf/kl_control.py`): it observes a whole rollout a few dozen times, and a trust region bounds
the KL meanwhile.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from frugalign.runs.processes import mean_over_processes

KL_WEIGHT = 0.02
"""Per nat and answer, where pairs are learned: their loss falls without end."""
_STRENGTH = 10.0


@dataclass
class Brake:
    """Adds `weight` times the KL to a loss, and replaces the loss after a step beyond the target.

    Args:
        weight: per unit of the KL that `applied` is given.
        target: nats per answer, or None.
        slope: how steep the loss is in a log-likelihood. The way back is ten times steeper.
    """

    weight: float
    target: float | None
    slope: float = 1.0
    last: float = 0.0
    _step: list[float] = field(default_factory=list, repr=False, compare=False)

    @property
    def is_beyond(self) -> bool:
        """Whether this step returns towards the start."""
        return self.target is not None and self.last > self.target

    def applied(self, loss: Tensor, kl: Tensor, length: float = 1.0) -> Tensor:
        """The loss of a micro-batch with the brake.

        Args:
            kl: the mean KL, per token or per answer as the loss is.
            length: the mean number of those in an answer.
        """
        self._step.append(float(kl.detach()) * length)
        if self.is_beyond:
            return _STRENGTH * self.slope * kl
        return loss + self.weight * kl if self.weight else loss  # without a weight, no gradient of the KL is computed

    def end_step(self) -> None:
        """Take the mean over the micro-batches of a step and over processes."""
        if self._step:
            self.last = mean_over_processes({"kl": sum(self._step)}, len(self._step))["kl"]
            self._step.clear()

    def reset(self) -> None:
        """Forget what was seen, as before the first step."""
        self.last = 0.0
        self._step.clear()
