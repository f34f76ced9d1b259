"""What a proxy makes of stored answers: exact log-probabilities and the KL to its base, with gradients, from the feature cache."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from frugalign.methods.answer_features import Features
from frugalign.proxy import overseer
from frugalign.proxy.positions import distinct, log_probabilities

INTEGRATED: dict[str, overseer.Objective] = {
    "marginal": "marginal",
    "sequential": "sequential_integrated",
    "sequential_integrated": "sequential_integrated",
}
"""The likelihood of a stored answer by a proxy's objective. No coin was flipped for it, so the flips are integrated out."""


@dataclass(frozen=True)
class ScoredAnswers:
    """What a proxy makes of `n` stored answers, with gradients. All `[n]`, but `by_token [N]`, `log π` of every token that counts.

    `log_ratio`: `log π(y) − log p(y)`. `log_prob`: `log π(y)`. `kl`: `Σ_t KL(π_t ‖ p_t)` on the answer's prefixes. `lengths`: tokens that count.
    `from_teacher`: `Σ_t KL(teacher_t ‖ π_t)`, where a teacher was read.
    """

    log_ratio: Tensor
    log_prob: Tensor
    kl: Tensor
    lengths: Tensor
    by_token: Tensor
    from_teacher: Tensor | None = None


def score_stored(
    proxy: nn.Module, features: Features, objective: overseer.Objective, embeddings: Tensor | None
) -> ScoredAnswers:
    """Run the proxy on stored features.

    Args:
        proxy: the network, or its data-parallel wrapper.
        objective: the proxy's.
        embeddings: rows of the base's output embeddings `[V, D]`; None if the proxy does not read them.
    """
    positions = features.positions
    rows, index = distinct(positions, embeddings)
    score = proxy(positions.hidden, positions.ids, embeddings=rows, index=index, log_p=positions.log_p)
    _, log_pi = log_probabilities(score, positions, INTEGRATED[objective])
    own = positions.choice[:, None]
    ratio = (log_pi.gather(-1, own) - positions.log_p.gather(-1, own)).squeeze(-1)

    def by_answer(values: Tensor) -> Tensor:
        return values.new_zeros(len(features.lengths)).index_add(0, positions.sequence, values)

    log_ratio = by_answer(ratio)
    from_teacher = None
    if features.imitated is not None:
        from_teacher = by_answer(
            overseer.kl_choice(features.imitated.log_p, log_pi, positions.mask) + features.imitated.rest
        )
    return ScoredAnswers(
        log_ratio=log_ratio,
        log_prob=log_ratio + by_answer(features.base_log_prob),
        kl=by_answer(overseer.kl_choice(log_pi, positions.log_p, positions.mask)),
        lengths=features.lengths,
        by_token=ratio + features.base_log_prob,
        from_teacher=from_teacher,
    )
