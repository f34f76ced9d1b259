"""How far training moves the policy: a controller of β, and a trust region around every rollout **[ours]** (`docs/methods/proxy.md#training`).

A rollout stores every state that it visited. The exact divergence of an updated proxy there costs no pass through the
language model: only the proxy runs. A learning rate that fits one base can be tenfold too large for another.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainerCallback

from frugalign.base.errors import FrugalignError
from frugalign.methods.proxy_rlhf.loss import Minibatch, acceptance_logits
from frugalign.proxy.overseer import Objective, kl_choice
from frugalign.proxy.positions import log_probabilities

_TRIES = 4
_MARGIN = 0.9
_ENOUGH = 0.5
_LITTLE = 0.1


@dataclass(frozen=True)
class Distances:
    """Nats per sequence, on the states of a rollout: `moved`, `KL(π_new ‖ π_old)`, and `from_base`, `KL(π_new ‖ p)`."""

    moved: float
    from_base: float


@dataclass(frozen=True)
class Limits:
    """The most that one rollout may move the policy, and how far from the base it may end. None: as far as it likes."""

    moved: float
    from_base: float | None = None

    def excess(self, found: Distances) -> float:
        """How many times a distance is over its limit: at most 1 if none is."""
        over = found.moved / self.moved
        return over if self.from_base is None else max(over, found.from_base / self.from_base)


BETA = 0.05
_RISE, _FALL = 0.7, 0.3
_FALLING = 0.5
_PROGRESS = 0.02
_NO_OBSTACLE = 0.15
"""β does not fall further where the whole target costs this share of the rewards' spread: something else then holds the policy back."""
_OVER_TARGET = 1.2
"""A rollout may end this many times the target away from the base, or as far as it began."""


@dataclass
class KLController:
    """Steers `kl_choice`, in nats per sequence, towards `target` by the price `beta`. Without a target, β is constant.

    `log β` moves by `log(kl/target)` over the target and by half of that below, at most 0.7 up and 0.3 down after a rollout. It moves only while the KL does
    not come closer by itself: over the target unless the KL falls by 2 % of the target, below it unless the KL is that much over the
    `highest` so far. For a new proxy starts below its target at any price, and takes many rollouts to get there. If β is too low meanwhile, the
    trust region bounds the KL. β also does not fall under 0.15 times the mean `spread` of rewards over the target: a proxy
    that learns slowly at first would wind it down, and then be far over the target before it is up again.

    A training on stored answers has rules of its own (`methods/brake.py`): it observes a noisy batch after each of hundreds of steps, where a
    rollout gives a mean over fresh samples a few dozen times.
    """

    beta: float | None
    target: float | None
    last_kl: float | None = None
    highest: float | None = None
    spread: float = 0.0
    rollouts: int = 0

    def price(self, spread: float) -> float:
        """β, in reward per nat, for a rollout whose rewards have this `spread`. Where none was given, the first spread above 0 sets it.

        The best of many samples gains about `spread·√(2·KL)`. Its slope at the target is what a nat there is worth.
        """
        self.rollouts += 1
        self.spread += (spread - self.spread) / self.rollouts
        if self.beta is None and self.target is not None and spread > 0:
            self.beta = spread / math.sqrt(2 * self.target)
        return BETA if self.beta is None else self.beta

    def observe(self, kl: float) -> None:
        """Change β after a rollout with this mean KL."""
        if self.target is None or self.beta is None:
            return
        far = math.log(max(kl, 1e-9) / self.target)
        comes_back = self.last_kl is not None and kl < self.last_kl - _PROGRESS * self.target
        climbs = self.highest is None or kl > self.highest + _PROGRESS * self.target
        if far > 0 and not comes_back:
            self.beta *= math.exp(min(far, _RISE))
        elif far < 0 and not climbs:
            lower = self.beta * math.exp(max(_FALLING * far, -_FALL))
            self.beta = min(self.beta, max(lower, _NO_OBSTACLE * self.spread / self.target))
        self.last_kl = kl
        self.highest = kl if self.highest is None else max(kl, self.highest)

    def limits(self, from_base: float, moved: float) -> Limits:
        """The limits of an update that starts this far from the base: it may not end further away than it starts, or than 1.2 targets."""
        return Limits(moved, None if self.target is None else max(_OVER_TARGET * self.target, from_base))


class AfterEachStep(TrainerCallback):
    """Calls a function after every optimiser step, before it is logged or saved."""

    def __init__(self, call: Callable[[], None]) -> None:
        self._call = call

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self._call()


@dataclass(frozen=True)
class TrustRegion:
    """Measures a proxy on a rollout's `minibatches`, and shortens its steps. `reduce_sum` sums a tensor over processes."""

    minibatches: Sequence[Minibatch]
    objective: Objective
    reduce_sum: Callable[[Tensor], Tensor]

    @torch.no_grad()
    def distances(self, proxy: nn.Module | None = None) -> Distances:
        """The distances of the proxy as it is now. None: as it was when it sampled."""
        sums = torch.zeros(3, dtype=torch.float64)
        for batch in self.minibatches:
            positions = batch.positions
            log_pi = batch.old_log_pi
            if proxy is not None:
                _, log_pi = log_probabilities(acceptance_logits(proxy, batch), positions, self.objective)
            moved = kl_choice(log_pi, batch.old_log_pi, positions.mask).double().sum()
            from_base = kl_choice(log_pi, positions.log_p, positions.mask).double().sum()
            sums += torch.tensor([float(moved), float(from_base), float(batch.n_sequences)], dtype=torch.float64)
        sums = self.reduce_sum(sums)
        return Distances(float(sums[0] / sums[2]), float(sums[1] / sums[2]))

    @torch.no_grad()
    def shorten(self, proxy: nn.Module, before: Sequence[Tensor], limits: Limits) -> tuple[float, Distances]:
        """Move the proxy back towards its parameters `before` until it is within the limits.

        A divergence grows like the square of a small step, which gives the next share of the step to try. A step that is
        still too long after a few tries is undone.

        Returns:
            the share of the step that is kept, and the distances.

        Raises:
            FrugalignError: the step made a weight infinite or NaN, from which no training recovers.
        """
        after = [parameter.detach().clone() for parameter in proxy.parameters()]
        if not all(bool(parameter.isfinite().all()) for parameter in after):
            raise FrugalignError(
                "Training diverged: a weight of the proxy is not a finite number. Lower the learning rate."
            )
        share, found = 1.0, self.distances(proxy)
        for _ in range(_TRIES):
            excess = limits.excess(found)
            if excess <= 1.0:
                return share, found
            share *= _MARGIN / excess**0.5 if math.isfinite(excess) else 0.1
            _interpolate(proxy, before, after, share)
            found = self.distances(proxy)
        if not limits.excess(found) <= 1.0:  # NaN is no reason to keep it
            share = 0.0
            _interpolate(proxy, before, after, share)
            found = self.distances(proxy)
        return share, found


@dataclass
class RolloutUpdate:
    """The optimiser steps on one rollout. They stop after the pass that has moved the policy most of the way that it may.

    A pass costs about a hundredth of sampling on a model of a hundred million parameters, so the region decides how many there are.
    Where steps lead out of the limit on the distance from the base, and so are hardly kept, the next pass has twice the `price` of
    the KL. A rollout that begins beyond the limit would teach nothing else.
    """

    region: TrustRegion
    limits: Limits
    _before: list[Tensor] = field(default_factory=list)
    _kept: list[float] = field(default_factory=list)
    _norms: list[float] = field(default_factory=list)
    _found: Distances | None = None
    _stopped: bool = False
    price: float = 1.0

    def minibatch(self, step: int) -> Minibatch | None:
        """The minibatch of optimiser step `step` of the rollout. None: no step."""
        each = len(self.region.minibatches)
        if step and step % each == 0 and not self._stopped:
            assert self._found is not None
            self._stopped = self._found.moved >= _ENOUGH * self.limits.moved
            if sum(self._kept[-each:]) < _LITTLE * each:
                self.price *= 2
        if self._stopped:
            return None
        minibatch = self.region.minibatches[step % each]
        return minibatch if self.price == 1 else replace(minibatch, kl_weight=self.price * minibatch.kl_weight)

    def begin(self, proxy: nn.Module) -> None:
        """Remember the proxy as it is before an optimiser step, with its gradients."""
        gradients = [parameter.grad for parameter in proxy.parameters() if parameter.grad is not None]
        self._norms.append(float(torch.nn.utils.get_total_norm(gradients)))
        self._before = [parameter.detach().clone() for parameter in proxy.parameters()]

    def end(self, proxy: nn.Module) -> None:
        """Keep as much of the step just made as the limits allow."""
        if self._before:
            share, self._found = self.region.shorten(proxy, self._before, self.limits)
            self._kept.append(share)
            self._before = []

    def statistics(self) -> dict[str, float]:
        """What the update did: `passes`, means over its steps, and the distances at its end."""
        assert self._found is not None
        return {
            "grad_norm": sum(self._norms) / len(self._norms),
            "passes": len(self._kept) / len(self.region.minibatches),
            "step_kept": sum(self._kept) / len(self._kept),
            "moved": self._found.moved,
            "kl_after": self._found.from_base,
        }


def _interpolate(proxy: nn.Module, before: Sequence[Tensor], after: Sequence[Tensor], share: float) -> None:
    for parameter, old, new in zip(proxy.parameters(), before, after, strict=True):
        parameter.copy_(torch.lerp(old, new, share) if share else old)
