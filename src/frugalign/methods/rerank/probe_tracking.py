"""Keep probes up to date with the policy's states: periodic margin steps on labelled pairs, then new μ and t̂.

See `docs/methods/rerank.md#refresh-the-probes`. The pairs are usually those that the probes were fitted on, so a newly fitted
temperature would reflect memorised labels. Therefore only the *change* since the start is tracked: t̂ by the ratio of the
pairs' best temperatures, and μ by the shift of their mean.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainerState

from frugalign.data.encode import EncodedCompletions
from frugalign.engines.states import endpoint_states, read_ids
from frugalign.rewards.representation.fit import Standardiser, best_temperature, pair_loss
from frugalign.rewards.representation.network import RepresentationModel

States = Callable[[Sequence[int]], tuple[Tensor, Tensor]]
"""Maps pair numbers to the current policy's states of the better and worse answers, `[n, layers, D]` each."""

_WINDOW = 256
"""Pairs over which the mean and the temperature are tracked."""


class ProbeTracker:
    """Updates `probes` as the policy's states change.

    Args:
        n_pairs: number of labelled pairs.
        learning_rate: the share of the margin that a step would gain if all pairs agreed. Steps are normalised on standardised states,
            so they do not depend on the states' number or scale.
        batch_size: pairs per step.
    """

    def __init__(
        self,
        probes: RepresentationModel,
        n_pairs: int,
        *,
        learning_rate: float,
        margin: float,
        batch_size: int,
        seed: int,
    ) -> None:
        self.probes, self.n_pairs = probes, n_pairs
        self.learning_rate, self.margin, self.batch_size, self.seed = learning_rate, margin, batch_size, seed
        self.steps = 0
        self.standard: Standardiser | None = None
        self.start = (probes.config.mu, probes.config.scale, 0.0, 1.0)
        self.window: list[tuple[float, float]] = []

    def begin(self, states: States) -> None:
        """Measure the labelled pairs before training."""
        better, worse = states(self._numbers(min(_WINDOW, self.n_pairs)))
        both = torch.cat([better, worse])
        self.standard = Standardiser.of(both.__getitem__, torch.arange(len(both)))
        self._remember(better, worse)
        self.start = (self.probes.config.mu, self.probes.config.scale, *self._level())

    def step(self, states: States) -> dict[str, float]:
        """Take one margin step, then recalibrate.

        Returns:
            The accuracy and the loss of the pairs before the step, and the new calibration.
        """
        better, worse = states(self._numbers(self.batch_size))
        self.steps += 1
        with torch.no_grad():
            gap = self.probes(better) - self.probes(worse)
        found = {
            "probe/accuracy": float((gap > 0).float().mean()),
            "probe/loss": float(pair_loss(gap, 0 * gap, self.margin)),
        }
        self._remember(better, worse)
        self._learn(better, worse)
        mu, scale, mean, temperature = self.start
        mean_now, temperature_now = self._level()
        self.probes.config.mu = mu + mean_now - mean
        self.probes.config.scale = scale * temperature_now / temperature
        return found | {"probe/mu": self.probes.config.mu, "probe/scale": self.probes.config.scale}

    @torch.enable_grad()
    def _learn(self, better: Tensor, worse: Tensor) -> None:
        assert self.standard is not None
        probes, standard = self.probes, self.standard
        better, worse = standard(better), standard(worse)
        standard.unfold(probes)
        probes.requires_grad_(True)
        probes.zero_grad()
        pair_loss(probes(better), probes(worse), self.margin).backward()
        with torch.no_grad():
            # A unit step along a pair's own gradient moves its gap by at most |Δx|².
            step = self.learning_rate / float((better - worse).pow(2).sum((1, 2)).mean().clamp(min=1e-12))
            for parameter in probes.parameters():
                assert parameter.grad is not None
                parameter.sub_(step * parameter.grad)
        probes.zero_grad()
        probes.requires_grad_(False)
        standard.fold(probes)

    def _numbers(self, size: int) -> list[int]:
        """The next pairs, in an order that follows from the seed. All pairs are visited before any repeats."""
        first = self.steps * self.batch_size
        found: list[int] = []
        while len(found) < min(size, self.n_pairs):
            place = first + len(found)
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + place // self.n_pairs)
            order = torch.randperm(self.n_pairs, generator=generator).tolist()
            found += order[place % self.n_pairs :][: min(size, self.n_pairs) - len(found)]
        return found

    @torch.no_grad()
    def _remember(self, better: Tensor, worse: Tensor) -> None:
        rewards = zip(self.probes(better).tolist(), self.probes(worse).tolist(), strict=True)
        self.window = (self.window + list(rewards))[-_WINDOW:]

    def _level(self) -> tuple[float, float]:
        """The mean raw reward and the best temperature over the window."""
        rewards = torch.tensor(self.window, dtype=torch.float64)
        return float(rewards.mean()), best_temperature(rewards[:, 0] - rewards[:, 1])

    def state(self) -> dict[str, Any]:
        """The JSON-ready state."""
        assert self.standard is not None
        return {
            "steps": self.steps,
            "start": list(self.start),
            "window": self.window,
            "standard": [self.standard.mean.tolist(), self.standard.scale.tolist()],
            "probes": {name: value.tolist() for name, value in self.probes.state_dict().items()},
            "calibration": [self.probes.config.mu, self.probes.config.scale],
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Restore what `state` returned."""
        self.steps, self.window = int(state["steps"]), [(a, b) for a, b in state["window"]]
        mu, scale, mean, temperature = state["start"]
        self.start = (mu, scale, mean, temperature)
        device = self.probes.weight.device
        self.standard = Standardiser(*(torch.tensor(values, device=device) for values in state["standard"]))
        self.probes.load_state_dict({name: torch.tensor(value) for name, value in state["probes"].items()})
        self.probes.config.mu, self.probes.config.scale = state["calibration"]


class ProbeTracking(TrainerCallback):
    """Updates the trainer's probes every `args.reward_refresh_steps` optimiser steps, and logs the result.

    Args:
        trainer: a `RerankTrainer` with probes.
        labelled: encoded labelled pairs.
    """

    def __init__(self, trainer: Any, labelled: Dataset) -> None:
        args = trainer.args
        self.trainer, self.labelled, self.every = trainer, labelled, args.reward_refresh_steps
        self.tracker = ProbeTracker(
            trainer.probes.to(trainer.accelerator.device),
            len(labelled),
            learning_rate=args.reward_learning_rate,
            margin=args.margin,
            # As many pairs as in a step of the policy. All processes use the same ones.
            batch_size=args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size,
            seed=args.seed,
        )

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if state.global_step == 0:
            self.tracker.begin(self.states)

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if state.global_step % self.every == 0:
            with self.trainer.ledger.phase("reward"):
                # The same numbers on every process.
                for name, value in self.tracker.step(self.states).items():
                    self.trainer.means.steps["train"][name].append(value)

    def states(self, numbers: Sequence[int]) -> tuple[Tensor, Tensor]:
        """The current policy's endpoint states of labelled pairs, better and worse, `[n, layers, D]` each."""
        trainer = self.trainer
        policy: Any = trainer.accelerator.unwrap_model(trainer.model)
        rows, layers = self.labelled.select(numbers), self.tracker.probes.config.layers
        sides = (EncodedCompletions(rows["prompt_ids"], rows[side]) for side in ("chosen_ids", "rejected_ids"))
        better, worse = (
            endpoint_states(policy, read_ids(each, trainer.processing_class), layers, ledger=trainer.ledger)
            for each in sides
        )
        return better.to(trainer.accelerator.device), worse.to(trainer.accelerator.device)
