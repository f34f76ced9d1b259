"""Fit the probes: margin loss on pairs or cross-entropy on labelled answers, early stopping, calibration (`docs/methods/representation-reward.md#network-and-loss`).

Features are standardised by the training rows. At the end both constants are folded into the probes' weights, so the
saved probes read plain hidden states.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, logsigmoid, softplus
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from frugalign.base.errors import FrugalignError
from frugalign.base.progress import FITTED, advance
from frugalign.rewards.representation.network import RepresentationConfig, RepresentationModel

ReadStates = Callable[[Tensor], Tensor]
"""Map rows `[n]` to states `[n, layers, D]`."""


@dataclass(frozen=True)
class FitOptions:
    """Options of the fit. `weight_decay`: λ of `λ·L·D/2·‖w‖²` on standardised features, per example. `margin`: of the
    pair loss. `chunk`: answers held in memory at once.

    With the factor `L·D`, the number of features, one λ acts alike on one layer and on all, on small and large models.
    """

    weight_decay: float = 0.001
    max_iterations: int = 200
    patience: int = 20
    margin: float = 1.0
    chunk: int = 1024


@dataclass
class Examples:
    """Training examples. For pairs, `first` and `second` are the chosen and the rejected rows `[n]`. For labelled
    answers, `first` holds the rows and `labels [n]` is 1 for good."""

    first: Tensor
    second: Tensor | None = None
    labels: Tensor | None = None

    def __len__(self) -> int:
        return len(self.first)

    def select(self, index: Tensor) -> Examples:
        return Examples(
            self.first[index],
            None if self.second is None else self.second[index],
            None if self.labels is None else self.labels[index],
        )


def pair_loss(chosen: Tensor, rejected: Tensor, margin: float = 1.0) -> Tensor:
    """`−log σ(r_c − r_r − margin)`, mean over pairs (`docs/methods/representation-reward.md#network-and-loss`)."""
    return -logsigmoid(chosen - rejected - margin).mean()


def label_loss(rewards: Tensor, labels: Tensor) -> Tensor:
    """Binary cross-entropy of `σ(r)` against labels in {0, 1}, mean over answers."""
    return binary_cross_entropy_with_logits(rewards, labels.to(rewards))


@dataclass
class Standardiser:
    """Mean and spread of every feature over the training rows, `[layers, D]` both.

    A few dimensions of a large model's states are a hundred times larger than the others. With one scale for all, the
    penalty would act on the small ones only.
    """

    mean: Tensor
    scale: Tensor

    @classmethod
    def of(cls, read: ReadStates, rows: Tensor, batch_size: int = 1024) -> Standardiser:
        """Computed in two passes over the rows, in batches. A constant feature keeps its scale."""
        parts = rows.unique().split(batch_size)
        n = sum(len(part) for part in parts)
        mean = torch.stack([read(part).double().sum(0) for part in parts]).sum(0) / n
        spread = (torch.stack([(read(part).double() - mean).pow(2).sum(0) for part in parts]).sum(0) / n).sqrt()
        return cls(mean.float(), torch.where(spread > 1e-6, spread, 1.0).float())

    def __call__(self, states: Tensor) -> Tensor:
        return (states - self.mean) / self.scale

    def fold(self, model: RepresentationModel) -> None:
        """Convert a model of standardised features to plain features, in place: `w·(h − m)/s + b = (w/s)·h + (b − (w/s)·m)`."""
        with torch.no_grad():
            model.weight.div_(self.scale)
            model.bias.sub_((model.weight * self.mean).sum())

    def unfold(self, model: RepresentationModel) -> None:
        """The inverse of `fold`, in place."""
        with torch.no_grad():
            model.bias.add_((model.weight * self.mean).sum())
            model.weight.mul_(self.scale)


@dataclass
class FitResult:
    """The probes on plain states, and the course of the fit. `history` has one `(training loss, validation loss)` per
    iteration."""

    model: RepresentationModel
    history: list[tuple[float, float]]
    best_iteration: int
    validation_loss: float


@torch.enable_grad()
def fit(
    read: ReadStates, train: Examples, validation: Examples, layers: Sequence[int], width: int, options: FitOptions
) -> FitResult:
    """Fit probes by L-BFGS (scipy's) on all training examples, and keep the iteration with the lowest validation loss.

    Adam is not used: its first steps are as long along noise features as along the informative one, so early stopping
    keeps the noise. The states are read in chunks, again at every evaluation.

    Raises:
        FrugalignError: there are no examples, or the states are not finite.
    """
    if len(train) == 0 or len(validation) == 0:
        raise FrugalignError("Fitting the probes needs at least one training and one validation example.")
    rows = train.first if train.second is None else torch.cat([train.first, train.second])
    standard = Standardiser.of(read, rows)
    if not bool(standard.mean.isfinite().all() and standard.scale.isfinite().all()):
        raise FrugalignError("The hidden states are not finite, so no probe can be fitted on them.")
    model = RepresentationModel(RepresentationConfig(width=width, layers=list(layers))).double()
    best, best_state = math.inf, {name: value.clone() for name, value in model.state_dict().items()}
    best_iteration, history = 0, []
    last_loss = math.nan

    def objective(flat: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        nonlocal last_loss
        vector_to_parameters(torch.from_numpy(flat), model.parameters())
        model.zero_grad()
        penalty = options.weight_decay * model.weight.numel() / 2 * model.weight.pow(2).sum()
        penalty.backward()
        last_loss = float(penalty.detach()) + _mean_loss(model, read, standard, train, options, learn=True)
        gradient = torch.cat(
            [parameter.grad.reshape(-1) for parameter in model.parameters() if parameter.grad is not None]
        )
        return last_loss, gradient.numpy()

    @torch.no_grad()
    def evaluate(flat: NDArray[np.float64]) -> None:
        nonlocal best, best_state, best_iteration
        vector_to_parameters(torch.from_numpy(flat), model.parameters())
        held_out = _mean_loss(model, read, standard, validation, options)
        history.append((last_loss, held_out))
        advance(FITTED)
        if held_out < best - 1e-7:
            best, best_iteration = held_out, len(history) - 1
            best_state = {name: value.clone() for name, value in model.state_dict().items()}
        if len(history) - 1 - best_iteration >= options.patience:
            raise StopIteration

    start = parameters_to_vector(model.parameters()).detach().numpy()
    minimize(
        objective, start, jac=True, method="L-BFGS-B", callback=evaluate, options={"maxiter": options.max_iterations}
    )
    advance(FITTED, max(0, options.max_iterations - len(history)))
    if not math.isfinite(best):
        raise FrugalignError("The probes' validation loss was never finite.")
    model.load_state_dict(best_state)
    standard.fold(model)
    return FitResult(model.float().eval(), history, best_iteration, best)


def _mean_loss(
    model: RepresentationModel,
    read: ReadStates,
    standard: Standardiser,
    examples: Examples,
    options: FitOptions,
    learn: bool = False,
) -> float:
    """Mean loss of the examples, chunk by chunk. With `learn`, its gradient is accumulated in the parameters."""
    total = 0.0
    with torch.set_grad_enabled(learn):
        for index in torch.arange(len(examples)).split(options.chunk):
            batch = examples.select(index)
            first = model(standard(read(batch.first)).double())
            if batch.second is not None:
                loss = pair_loss(first, model(standard(read(batch.second)).double()), options.margin)
            else:
                assert batch.labels is not None
                loss = label_loss(first, batch.labels)
            part = loss * (len(index) / len(examples))
            if learn:
                part.backward()
            total += float(part.detach())
    return total


@torch.no_grad()
def raw_rewards(model: RepresentationModel, read: ReadStates, rows: Tensor, batch_size: int = 1024) -> Tensor:
    """Raw rewards of rows, `[n]`."""
    return torch.cat([model(read(part)) for part in rows.split(batch_size)]) if len(rows) else torch.zeros(0)


def calibrate(model: RepresentationModel, chosen: Tensor, rejected: Tensor) -> None:
    """Set `μ` and `t̂` from raw rewards of held-out pairs (in place): `μ` their mean, `t̂` the temperature that makes
    `σ((r_c − r_r)/t̂)` likeliest (`docs/methods/representation-reward.md#calibration`).

    If all pairs are ordered correctly, or none is, no such temperature exists. `t̂` is therefore bounded by [gap/10,
    10·gap] of the mean absolute gap.
    """
    model.config.scale = best_temperature(chosen - rejected)
    model.config.mu = float(torch.cat([chosen, rejected]).mean())


def best_temperature(gaps: Tensor) -> float:
    """The maximum-likelihood `t` of `σ(gap/t)`, for gaps `[n]` of pairs whose first answer is the better one.

    Raises:
        FrugalignError: all gaps are zero, or some are not finite.
    """
    gap = gaps.double()
    typical = float(gap.abs().mean())
    if not (math.isfinite(typical) and typical > 0):
        raise FrugalignError(
            "The probes give chosen and rejected answers the same reward, so they cannot be calibrated."
        )
    scales = typical * torch.logspace(-1, 1, 2001, dtype=torch.float64)
    losses = torch.stack([softplus(-gap / scale).mean() for scale in scales])
    return float(scales[losses.argmin()])
