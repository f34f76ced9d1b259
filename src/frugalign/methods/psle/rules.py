"""The rules of a round: how large a gain counts, which couples are ranked, what the other responses weigh (`docs/methods/psle.md#a-round`). Pure functions.

Rewards come in couples: `plain [N]` of the responses to the prompts alone, `guided [N]` of the responses under the principles, float64.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

RANKED, IMITATED, DROPPED = "ranked", "imitated", "dropped"


def threshold(tau: float, decay: float, round_number: int) -> float:
    """`τ_i = τ_0·αⁱ` of the round i = 0, 1, …, in units of `reward_scale`."""
    return tau * decay**round_number


def reward_scale(plain: Tensor, guided: Tensor) -> float:
    """`σ_0`: the standard deviation of round 0's rewards, both kinds pooled (population form); 1 where they are all equal, as nothing then has a
    scale."""
    both = torch.cat([plain, guided])
    # Rounding gives equal rewards a deviation of 1e-17, so it is not that which says whether they are.
    return float(both.std(correction=0)) if len(both.unique()) > 1 else 1.0


def is_gain(plain: Tensor, guided: Tensor, tau: float, scale: float) -> Tensor:
    """`r_p − r > τ·σ_0`, bool `[N]`: whether the principles improved the response clearly, so that the couple is a pair to rank."""
    return guided - plain > tau * scale


def round_weights(rewards: Tensor, scale: float, temperature: float = 1.0, cap: float = 5.0) -> Tensor:
    """`w = exp(z/T_w)` over its mean in the round, `z = (r − round mean)/σ_0`, at most `cap`: two bad answers weigh little, whichever is the better
    of them. (The round's mean reward divides out.)

    Args:
        rewards: of every response of the round, whatever branch it is in; any shape.
    """
    if not rewards.numel():
        return rewards
    logits = rewards / (scale * temperature)
    # The largest is taken out of numerator and mean: no reward, however far away, overflows.
    grown = (logits - logits.max()).exp()
    return (grown / grown.mean()).clamp(max=cap)


def pair_weights(plain: Tensor, guided: Tensor, scale: float, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    """A softmax inside each couple, the two weights adding up to 1: it cannot tell two good answers from two bad ones."""
    share = torch.sigmoid((guided - plain) / (scale * temperature))
    return 1 - share, share


@dataclass(frozen=True)
class Use:
    """What of the generated tokens is learned from: `tokens`, the share with a gradient; `responses`, `(Σw)²/(n·Σw²)`, the share of responses that
    equally weighted ones would have to be to weigh as much (Kish)."""

    tokens: float
    responses: float


def use_of(weights: Tensor, lengths: Tensor) -> Use:
    """`weights`, `lengths` `[M]` of all responses of the round, those left out at weight 0 and ranked ones at 1."""
    total, squares = float(weights.sum()), float(weights.square().sum())
    return Use(
        float(lengths[weights > 0].sum() / lengths.sum()) if float(lengths.sum()) else 0.0,
        total**2 / (weights.numel() * squares) if squares else 0.0,
    )
