"""Proxy-RLHF's training signal as pure functions: advantages and the clipped objective (`docs/methods/proxy.md#training`).

Shapes: `S` sequences of at most `n` positions, and `N` decided positions in all.
"""

from __future__ import annotations

import torch
from torch import Tensor


def leave_one_out(rewards: Tensor, groups: Tensor) -> tuple[Tensor, Tensor]:
    """Reward minus the mean reward of the prompt's *other* completions.

    Args:
        rewards: `[S]`, NaN if a reward was skipped.
        groups: `[S]` int64, equal for completions of the same prompt.

    Returns:
        advantage `[S]` (0 if skipped), and usable `[S]` bool (false if skipped, or alone in its group).
    """
    present = ~rewards.isnan()
    values = rewards.nan_to_num(0.0)
    _, group = groups.unique(return_inverse=True)
    size = int(group.max()) + 1 if len(group) else 0
    total = torch.zeros(size, dtype=values.dtype).index_add_(0, group, values)[group]
    count = torch.zeros(size, dtype=values.dtype).index_add_(0, group, present.to(values.dtype))[group]
    usable = present & (count >= 2)
    others = (total - values) / (count - 1).clamp(min=1)
    return torch.where(usable, values - others, torch.zeros_like(values)), usable


def kl_to_go(kl: Tensor, valid: Tensor) -> Tensor:
    """`Σ_{t'>t} KL_{t'}` for `kl [S, n]`: `[S, n]`. `valid [S, n]` is true at real positions."""
    kl = torch.where(valid, kl, torch.zeros_like(kl))
    return kl.flip(1).cumsum(1).flip(1) - kl


def centre_by_position(values: Tensor, valid: Tensor, reduce_sum: object = None) -> Tensor:
    """Subtract, at each position, the mean over the *other* sequences that reach it: `[S, n]` -> `[S, n]`, 0 at padding.

    The KL to go shrinks along a completion, whatever the choices. A single mean for the batch would reward early tokens.
    With the sequence itself in the mean, the gradient would shrink by `1 − 1/n_t`, and the longest one would pay nothing at its
    end. Alone, a sequence keeps its value. `reduce_sum` sums a tensor over processes.
    """
    stacked = torch.stack([torch.where(valid, values, torch.zeros_like(values)).sum(0), valid.to(values.dtype).sum(0)])
    if callable(reduce_sum):
        stacked = reduce_sum(stacked)
    total, count = stacked
    others = torch.where(count > 1, total - values, torch.zeros_like(values)) / (count - 1).clamp(min=1)
    return torch.where(valid, values - others, torch.zeros_like(values))


def gae(rewards: Tensor, kl: Tensor, values: Tensor, valid: Tensor, beta: float, lam: float) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation with γ = 1 for the return `G_t = r − β Σ_{t'>t} KL_{t'}`.

    Args:
        rewards: `[S]`; kl, values: `[S, n]`; valid: `[S, n]`, true on a prefix of each row.

    Returns:
        advantages and value targets, `[S, n]` each, 0 at padding.
    """
    n = kl.shape[1]
    lengths = valid.sum(1)
    advantage = torch.zeros_like(values)
    running = torch.zeros_like(rewards)
    for t in reversed(range(n)):
        last = lengths == t + 1
        ahead = torch.zeros_like(rewards) if t + 1 == n else values[:, t + 1] - beta * kl[:, t + 1]
        delta = torch.where(last, rewards, ahead) - values[:, t]
        running = torch.where(last, delta, delta + lam * running)
        running = torch.where(valid[:, t], running, torch.zeros_like(running))
        advantage[:, t] = running
    return advantage, torch.where(valid, advantage + values, torch.zeros_like(values))


def clipped_objective(
    log_prob: Tensor, old_log_prob: Tensor, advantage: Tensor, epsilon: float
) -> tuple[Tensor, Tensor]:
    """PPO's clipped surrogate per position `[N]`, to be maximised, and whether the clip was active `[N]`."""
    ratio = (log_prob - old_log_prob).exp()
    clipped = ratio.clamp(1 - epsilon, 1 + epsilon)
    surrogate = torch.minimum(ratio * advantage, clipped * advantage)
    active = ((ratio > 1 + epsilon) & (advantage > 0)) | ((ratio < 1 - epsilon) & (advantage < 0))
    return surrogate, active
