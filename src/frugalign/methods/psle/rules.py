"""The rules of a round: the threshold, which couples are ranked, and the weights of the others (`docs/methods/psle.md#a-round`). Pure functions.

Rewards come in couples, float64: `plain [N]` of responses to the plain prompts, `guided [N]` of responses under the principles.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

RANKED, IMITATED, DROPPED = "ranked", "imitated", "dropped"


def threshold(tau: float, decay: float, round_number: int) -> float:
    """`τ_i = τ_0·αⁱ` of round i = 0, 1, …, in units of `reward_scale`."""
    return tau * decay**round_number


def reward_scale(plain: Tensor, guided: Tensor) -> float:
    """`σ_0`: the population standard deviation of round 0's rewards, both kinds pooled; 1 if all are equal."""
    both = torch.cat([plain, guided])
    # Rounding gives equal rewards a deviation of 1e-17, so compare the values themselves.
    return float(both.std(correction=0)) if len(both.unique()) > 1 else 1.0


def is_gain(plain: Tensor, guided: Tensor, tau: float, scale: float) -> Tensor:
    """`r_p − r > τ·σ_0`, bool `[N]`: whether the principles clearly improved the response, so that the couple is ranked."""
    return guided - plain > tau * scale


def round_weights(rewards: Tensor, scale: float, temperature: float = 1.0, cap: float = 5.0) -> Tensor:
    """`w = exp(z/T_w)` divided by its mean over the round, at most `cap`, with `z = (r − round mean)/σ_0`.

    Two bad answers both get a small weight. The round's mean reward cancels.

    Args:
        rewards: of all responses of the round, in every branch; any shape.
    """
    if not rewards.numel():
        return rewards
    logits = rewards / (scale * temperature)
    # Subtracting the maximum prevents overflow, and cancels.
    grown = (logits - logits.max()).exp()
    return (grown / grown.mean()).clamp(max=cap)


def pair_weights(plain: Tensor, guided: Tensor, scale: float, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    """A softmax within each couple. It cannot tell two good answers from two bad ones."""
    share = torch.sigmoid((guided - plain) / (scale * temperature))
    return 1 - share, share


@dataclass(frozen=True)
class Use:
    """How much of the generated data is learned from.

    `tokens`: the share of tokens with a gradient. `responses`: Kish's effective sample size, `(Σw)²/Σw²`, as a share of all
    responses.
    """

    tokens: float
    responses: float


def use_of(weights: Tensor, lengths: Tensor) -> Use:
    """Compute `Use` from the `weights` and `lengths` `[M]` of all responses. Dropped ones weigh 0, ranked ones 1."""
    total, squares = float(weights.sum()), float(weights.square().sum())
    return Use(
        float(lengths[weights > 0].sum() / lengths.sum()) if float(lengths.sum()) else 0.0,
        total**2 / (weights.numel() * squares) if squares else 0.0,
    )
