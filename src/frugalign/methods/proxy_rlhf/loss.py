"""The proxy's loss on a minibatch of positions: the three objectives, exact KL, PPO-clip (`docs/methods/proxy.md#training`)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from frugalign.methods.proxy_rlhf.advantages import clipped_objective
from frugalign.methods.proxy_rlhf.rollout import Positions
from frugalign.proxy import overseer

_CHUNK_ELEMENTS = 4_000_000
"""Elements of `[N, K, nodes]` that the quadrature holds at once."""


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


def log_probabilities(score: Tensor, positions: Positions, objective: overseer.Objective) -> tuple[Tensor, Tensor]:
    """Log-probability of the recorded choice at each position under the objective `[N]`, and `log π` of every candidate `[N, K]`.

    `score [N, K]`: the proxy's acceptance logits.
    """
    log_a, log_1ma = overseer.log_acceptance(score)
    if objective == "marginal":
        log_pi = overseer.marginal_log_pi(positions.log_p, log_a, positions.mask)
    else:
        log_pi = _sequential(positions, log_a, log_1ma)
    if objective == "sequential":
        assert positions.rejected is not None and positions.coin_flipped is not None
        path = overseer.sequential_path_log_prob(
            log_a, log_1ma, positions.rejected, positions.choice, positions.coin_flipped
        )
        return path, log_pi
    return log_pi.gather(-1, positions.choice[:, None]).squeeze(-1), log_pi


def acceptance_logits(proxy: nn.Module, batch: Minibatch, with_value: bool = False) -> Any:
    """The proxy's logits `[N, K]` at the positions of a minibatch and, `with_value`, also its values `[N]`."""
    positions = batch.positions
    return proxy(
        positions.hidden,
        positions.ids,
        embeddings=batch.embeddings,
        index=batch.index,
        lookahead=positions.lookahead,
        with_value=with_value,
    )


def _sequential(positions: Positions, log_a: Tensor, log_1ma: Tensor) -> Tensor:
    """The quadrature, in chunks of positions with similar numbers of candidates.

    Each chunk is recomputed in the backward pass. `[N, K, nodes]` never exists as a whole, and little of it is padding.
    """
    n, width = log_a.shape
    size = max(1, _CHUNK_ELEMENTS // (64 * width))
    if n <= size:
        return overseer.sequential_log_pi(positions.log_p, log_a, log_1ma, positions.mask)
    counts = positions.mask.sum(-1)  # real candidates come first
    log_pi = torch.full_like(log_a, -torch.inf)
    for rows in counts.argsort(stable=True).split(size):
        most = int(counts[rows[-1]])
        part = (each[rows, :most] for each in (positions.log_p, log_a, log_1ma, positions.mask))
        found = torch.utils.checkpoint.checkpoint(overseer.sequential_log_pi, *part, use_reentrant=False)
        log_pi = log_pi.index_put((rows[:, None], torch.arange(most, device=rows.device)), found)
    return log_pi


def distinct(positions: Positions, rows: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    """The embedding rows `[U, D]` of the distinct candidates, and the index `[N, K]` into them. The tail's index is U."""
    if rows is None:
        return None, None
    ids, index = positions.ids.unique(return_inverse=True)
    return rows[ids[ids < len(rows)]], index  # the tail's id is the vocabulary's size, the last of all


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
