"""What a proxy learns from stored answers. Pure functions of the log-ratio to the base (`docs/methods/proxy.md#stored-data`).

`ρ(y) = Σ_t log π(y_t) − log p(y_t)` is exact from stored features: no reference model runs.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from frugalign.methods.answer_scores import ScoredAnswers
from frugalign.methods.losses import confidence_loss, dpo_loss, imitation_loss, ipo_loss, robust_dpo_loss


def pair_loss(scored: ScoredAnswers, args: Any, confidence: Tensor | None) -> Tensor:
    """The loss of pairs whose better answers come first, `[B]`, without the brake.

    Args:
        scored: `2B` answers.
        args: `loss`, `beta`, `label_noise`, `sft_weight`.
        confidence: of every label, `[B]`; only with the loss `sigmoid`.
    """
    chosen, rejected = scored.log_ratio.chunk(2)
    delta = chosen - rejected
    gamma = delta.new_ones(len(delta)) if confidence is None else confidence
    noise = 0.1 if args.label_noise is None else args.label_noise
    if args.loss == "ipo":
        found = ipo_loss(delta, args.beta)
    elif args.loss == "robust":
        found = robust_dpo_loss(delta, args.beta, noise)
    elif args.loss == "conservative":
        found = confidence_loss(delta, delta.new_full((len(delta),), 1 - noise), args.beta)
    elif confidence is None:
        found = dpo_loss(delta, args.beta)
    else:
        found = confidence_loss(delta, gamma, args.beta)
    if args.sft_weight:
        better, worse = (scored.log_prob / scored.lengths).chunk(2)
        found = found + args.sft_weight * imitation_loss(better, worse, gamma)
    return found


def demonstration_loss(scored: ScoredAnswers) -> Tensor:
    """`−log π(y)/|y|` of every demonstration, `[n]`."""
    return -scored.log_prob / scored.lengths


def teacher_loss(scored: ScoredAnswers) -> Tensor:
    """`Σ_t KL(teacher_t ‖ π_t)` of every answer, `[n]`."""
    assert scored.from_teacher is not None
    return scored.from_teacher
