"""PSLE's loss over a batch of couples (`docs/methods/psle.md#the-loss`). Pure functions.

`ℓ(y) = log π(y|x)/|y|` is a response's mean log-likelihood per token, including its end token.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import logsigmoid


def ranking_loss(guided: Tensor, plain: Tensor, temperature: float) -> Tensor:
    """`−log σ((ℓ_p − ℓ)/t)` per couple `[B]`. It makes the guided response more likely given the plain prompt."""
    return -logsigmoid((guided - plain) / temperature)


def imitation_loss(guided: Tensor, plain: Tensor, guided_weight: Tensor, plain_weight: Tensor) -> Tensor:
    """`−Σ_m w_m·ℓ_m` per couple `[B]`: both responses are demonstrations, each with its weight."""
    return -(guided_weight * guided + plain_weight * plain)


def couple_loss(ranking: Tensor, imitation: Tensor, is_ranked: Tensor, sft_weight: float) -> Tensor:
    """The ranking loss for ranked couples, and `η` times the imitation loss for the others, `[B]`.

    Its mean is the loss `(1/N)·[Σ_rank … + η·Σ_wsft …]`.
    """
    return ranking.where(is_ranked, sft_weight * imitation)
