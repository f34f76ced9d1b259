"""Losses on preferences, shared by the methods. Pure functions of `[B]` tensors.

`Δ = log(π/π_ref)(y_c) − log(π/π_ref)(y_r)`, from log-probabilities summed over each answer's tokens.
"""

from __future__ import annotations

from torch import Tensor, where
from torch.nn.functional import logsigmoid


def dpo_loss(delta: Tensor, beta: float) -> Tensor:
    """`−log σ(βΔ)` per pair `[B]` (Rafailov et al. 2023, eq. 7)."""
    return -logsigmoid(beta * delta)


def robust_dpo_loss(delta: Tensor, beta: float, noise: float) -> Tensor:
    """`[(1−ε)·ℓ(Δ) − ε·ℓ(−Δ)]/(1−2ε)` per pair `[B]`, where ℓ is DPO's loss: unbiased if a share ε of the labels is wrong (Chowdhury et
    al. 2024, eq. 12)."""
    return ((1 - noise) * dpo_loss(delta, beta) - noise * dpo_loss(-delta, beta)) / (1 - 2 * noise)


def ipo_loss(delta: Tensor, beta: float) -> Tensor:
    """`(Δ − 1/(2β))²` per pair `[B]` (Azar et al. 2023, eq. 17), on whole answers as in the paper. TRL divides Δ by their lengths."""
    return (delta - 1 / (2 * beta)).pow(2)


def confidence_loss(delta: Tensor, gamma: Tensor, beta: float) -> Tensor:
    """`−γ·log σ(βΔ) − (1−γ)·log σ(−βΔ)` per pair `[B]`: DPO where the label is right with probability γ.

    γ = 1 is DPO, and a constant γ = 1 − ε is conservative DPO. Below ½ the gradient prefers the rejected answer.
    """
    return gamma * dpo_loss(delta, beta) + (1 - gamma) * dpo_loss(-delta, beta)


def imitation_loss(chosen: Tensor, rejected: Tensor, gamma: Tensor) -> Tensor:
    """`−|2γ − 1|·ℓ` of the answer that γ favours, per pair `[B]`; `chosen`, `rejected`: mean log-likelihoods per token `[B]`.

    A loss on pairs alone may lower the likelihood of both answers. This term keeps the better one likely. At γ = 1 it is
    RPO's term. At γ = ½ no answer is imitated, and below ½ the rejected one is.
    """
    return -(2 * gamma - 1).abs() * where(gamma >= 0.5, chosen, rejected)
