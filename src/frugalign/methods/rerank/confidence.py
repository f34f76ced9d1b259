"""How sure a label is, from fresh rewards of both answers (`docs/methods/rerank.md#the-loss`). Pure functions; `methods/losses.py` has the loss that γ weighs."""

from __future__ import annotations

from torch import Tensor, sigmoid


def pair_confidence(chosen: Tensor, rejected: Tensor, floor: float = 0.5) -> Tensor:
    """`γ_i = max(σ(r̃_c − r̃_r), floor)` from calibrated rewards `[B]` each.

    A floor of ½ only weakens a doubtful label; 0 lets the order flip, as for γ < ½ the gradient prefers the rejected answer.
    """
    return sigmoid(chosen - rejected).clamp(min=floor).detach()


def posterior_confidence(chosen: Tensor, rejected: Tensor, noise: float, floor: float = 0.5) -> Tensor:
    """How probable it is that a label is right, from the states *and* from the label, where a share `noise` ε of the labels is wrong.

    The rewards are calibrated on such labels, so that `q = σ(r̃_c − r̃_r)` is the chance of the *label*; that of the truth is
    `p = (q − ε)/(1 − 2ε)` in [0, 1], and Bayes' rule gives `γ = p(1 − ε) / (p(1 − ε) + (1 − p)ε)`. Undecided states (q = ½) leave 1 − ε.
    `pair_confidence` is what the states say alone; all are `[B]`.
    """
    true = ((sigmoid(chosen - rejected) - noise) / (1 - 2 * noise)).clamp(0, 1)
    right = true * (1 - noise)
    return (right / (right + (1 - true) * noise)).clamp(min=floor).detach()


def batch_confidence(chosen: Tensor, rejected: Tensor, mu: float, kappa: float = 7.5) -> Tensor:
    """The published code's form, one γ for the batch: `max(σ(κ·(mean σ(r_c − μ) − mean σ(r_r − μ))), ½)`, repeated `[B]`; raw rewards."""
    gap = sigmoid(chosen - mu).mean() - sigmoid(rejected - mu).mean()
    return sigmoid(kappa * gap).clamp(min=0.5).detach().expand(len(chosen))
