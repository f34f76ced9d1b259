"""The proxy's loss on a minibatch of positions: the three objectives, exact KL, PPO-clip (`docs/methods/proxy.md#training`)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from frugalign.methods.proxy_rlhf.advantages import clipped_objective
from frugalign.proxy import overseer
from frugalign.proxy.positions import Positions, log_probabilities


@dataclass
class Minibatch:
    """Positions with their training signal.

    `embeddings [U, D]`, `index [N, K]`: the distinct candidates. `advantage [N]`, `kl_weight`: already scaled by 1/std.
    `returns [N]`: value targets of GAE, or None. `old_log_prob [N]`, `old_log_pi [N, K]`: of the choice, and of every candidate,
    under the proxy that sampled. `n_sequences`: the divisor of the sums.
    """

    positions: Positions
    embeddings: Tensor | None
    index: Tensor | None
    advantage: Tensor
    returns: Tensor | None
    old_log_prob: Tensor
    old_log_pi: Tensor
    kl_weight: float
    n_sequences: int


def acceptance_logits(proxy: nn.Module, batch: Minibatch, with_value: bool = False) -> Any:
    """The proxy's logits `[N, K]` at the positions of a minibatch and, `with_value`, also its values `[N]`."""
    positions = batch.positions
    return proxy(
        positions.hidden,
        positions.ids,
        embeddings=batch.embeddings,
        index=batch.index,
        lookahead=positions.lookahead,
        log_p=positions.log_p,
        with_value=with_value,
    )


def proxy_loss(
    proxy: nn.Module, batch: Minibatch, objective: overseer.Objective, epsilon: float, vf_coef: float
) -> tuple[Tensor, dict[str, float]]:
    """`−(1/S)·Σ_t min(ρ_t A_t, clip(ρ_t) A_t) + (β/std)·(1/S)·Σ_t KL_t (+ value loss)`, and what to log.

    `proxy`: the network, or its data-parallel wrapper.
    """
    positions = batch.positions
    found = acceptance_logits(proxy, batch, batch.returns is not None)
    score, values = found if batch.returns is not None else (found, None)
    log_prob, log_pi = log_probabilities(score, positions, objective)
    kl = overseer.kl_choice(log_pi, positions.log_p, positions.mask)
    surrogate, clipped = clipped_objective(log_prob, batch.old_log_prob, batch.advantage, epsilon)
    loss = (batch.kl_weight * kl - surrogate).sum() / batch.n_sequences
    logs = {"clip_fraction": float(clipped.float().mean()) if len(clipped) else 0.0}
    if values is not None:
        value_loss = (values - batch.returns).pow(2).sum() / max(1, len(values))
        loss = loss + vf_coef * value_loss
        logs["value_loss"] = float(value_loss.detach())
    return loss, logs
