"""From a scored rollout to minibatches: advantages, their scale, and the split into optimiser steps."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from frugalign.base.ledger import Ledger
from frugalign.data.encode import as_completions
from frugalign.methods.proxy_rlhf import advantages as losses
from frugalign.methods.proxy_rlhf.config import ProxyConfig
from frugalign.methods.proxy_rlhf.kl_control import KLController
from frugalign.methods.proxy_rlhf.loss import Minibatch
from frugalign.methods.proxy_rlhf.prompts import Prompts
from frugalign.methods.proxy_rlhf.rollout import Rollout
from frugalign.policies.prompt_rows import Scoring
from frugalign.proxy.network import ProxyModel
from frugalign.proxy.overseer import Objective
from frugalign.proxy.positions import distinct, log_probabilities
from frugalign.rewards import CompletionBatch, NamedReward, TrainerHooks, score
from frugalign.rewards.check_scores import (
    reads_states,
    warn_of_cut_responses,
    warn_of_equal_groups,
    warn_of_useless_rewards,
)


@dataclass(frozen=True)
class ScoredRollout:
    """The rewards of a rollout.

    `rewards [S]`: totals, NaN if skipped or not applicable. `by_name`: the values of each reward for `completions`, as it
    received them. `n_skipped`: rows on which a reward failed. `means`: the mean of each reward where it applies. `metrics`,
    `extra`: what the rewards logged through TRL's `log_metric` and `log_extra`.
    """

    rewards: Tensor
    completions: list[Any]
    by_name: dict[str, list[float | None]]
    n_skipped: int
    means: dict[str, float]
    metrics: list[tuple[str, float]]
    extra: dict[str, list[Any]]


def score_rollout(
    scoring: Scoring,
    prompts: Prompts,
    indices: list[int],
    rollout: Rollout,
    *,
    missing_eos_penalty: float,
    batch_index: int,
    ledger: Ledger,
) -> ScoredRollout:
    """Score a rollout's completions. Rewards also receive the data set's other columns and the stored hidden states."""
    rows = prompts.dataset[indices]
    completions = as_completions(rows["prompt"], prompts.texts(rollout))
    metrics: list[tuple[str, float]] = []
    extra: dict[str, list[Any]] = {}

    def log_metric(name: str, value: float) -> None:
        metrics.append((name, float(value)))

    def log_extra(column: str, values: Sequence[Any]) -> None:
        extra[column] = list(values)

    scored = score(
        scoring.rewards,
        CompletionBatch(
            rows["prompt"],
            completions,
            rollout.generation.completion_ids,
            columns={name: list(values) for name, values in rows.items() if name != "prompt"},
            states=rollout.generation.states,
            state_layers=scoring.state_layers,
            number=batch_index,
        ),
        weights=scoring.weights,
        on_error=scoring.on_error,
        hooks=TrainerHooks(scoring.trainer_state, log_extra, log_metric),
        ledger=ledger,
    )
    present = {name: [value for value in values if value is not None] for name, values in scored.by_name.items()}
    means = {name: sum(found) / len(found) for name, found in present.items() if found}
    values = torch.tensor(
        [float("nan") if value is None else float(value) for value in scored.total], dtype=torch.float64
    )
    cut = torch.tensor([not ended for ended in rollout.generation.ended])
    rewards = values + missing_eos_penalty * cut
    return ScoredRollout(rewards, completions, scored.by_name, scored.n_skipped, means, metrics, extra)


def check_first_rollout(
    rewards: Sequence[NamedReward], rollout: Rollout, scored: ScoredRollout, args: ProxyConfig
) -> None:
    """Warn of scores that the proxy cannot learn from."""
    warn_of_useless_rewards(rewards, scored.by_name, scored.completions)
    warn_of_equal_groups(scored.rewards.tolist(), args.num_generations)
    if reads_states(rewards) and not args.missing_eos_penalty:
        warn_of_cut_responses(rollout.statistics["cut_share"], args.max_new_tokens, may_penalise=True)


@dataclass
class Experience:
    """The minibatches of a rollout, and the statistics to log."""

    minibatches: list[Minibatch]
    mean_reward: float
    statistics: dict[str, float]

    @classmethod
    def build(
        cls,
        proxy: ProxyModel,
        rollout: Rollout,
        rewards: Tensor,
        args: ProxyConfig,
        controller: KLController,
        embeddings: Tensor | None,
        reduce_sum: Callable[[Tensor], Tensor],
    ) -> Experience:
        """Advantages `A_t = r − (leave-one-out mean) − β Σ_{t'>t} KL_{t'}`, centred per position, or GAE.

        Advantages and the KL term are scaled by the same 1/std, taken over all processes.

        Args:
            controller: gives the price β of the KL.
            rewards: `[S]`; every `args.num_generations` rows in a row share a prompt.
            embeddings: rows of the base's embedding matrix; None if the proxy does not read them.
            reduce_sum: sums a tensor over processes.
        """
        device = rollout.kl.device
        groups = torch.arange(len(rewards)) // args.num_generations
        baseline_free, usable = losses.leave_one_out(rewards, groups)
        if args.mask_truncated_completions:
            usable = usable & torch.tensor(rollout.generation.ended)
        n_usable = reduce_sum(usable.double().sum())
        spread = _std(baseline_free[usable], reduce_sum)
        scale = spread if spread > 1e-6 else 1.0  # equal advantages need no scale
        beta = controller.price(spread)
        adv, use = baseline_free.float().to(device), usable.to(device)
        if args.advantage == "gae":
            values = _values(proxy, rollout)
            matrix, returns = losses.gae(
                rewards.nan_to_num(0.0).float().to(device), rollout.kl, values, rollout.valid, beta, args.gae_lambda
            )
        else:
            to_go = losses.centre_by_position(
                losses.kl_to_go(rollout.kl, rollout.valid), rollout.valid & use[:, None], reduce_sum
            )
            matrix, returns = adv[:, None] - beta * to_go, None
        signal = _Signal(matrix / scale, returns, beta / scale)
        parts = [use & (groups.to(device) % args.num_mini_batches == part) for part in range(args.num_mini_batches)]
        minibatches = [_minibatch(proxy, rollout, part, signal, embeddings, args.objective) for part in parts]
        present = ~rewards.isnan()
        sums = reduce_sum(torch.stack([rewards[present].sum(), present.double().sum()]))
        statistics = {
            "reward_std": spread,
            "beta": beta,
            "usable_share": float(n_usable / reduce_sum(torch.tensor(float(len(rewards))))),
        }
        return cls(minibatches, float(sums[0] / sums[1].clamp(min=1)), statistics)


@dataclass(frozen=True)
class _Signal:
    """`advantage`, `returns` `[S, n]`, and the weight of the KL term; all but the returns already carry 1/std."""

    advantage: Tensor
    returns: Tensor | None
    kl_weight: float


def _minibatch(
    proxy: ProxyModel,
    rollout: Rollout,
    sequences: Tensor,
    signal: _Signal,
    embeddings: Tensor | None,
    objective: Objective,
) -> Minibatch:
    """The positions of the chosen `sequences` (bool `[S]`), with their log-probability before the update."""
    positions = rollout.positions.select(sequences[rollout.positions.sequence])
    rows, index = distinct(positions, embeddings)
    where = (positions.sequence, positions.position)
    read = {"embeddings": rows, "index": index, "lookahead": positions.lookahead, "log_p": positions.log_p}
    logits = proxy(positions.hidden, positions.ids, **read)
    old, old_log_pi = log_probabilities(logits, positions, objective)
    return Minibatch(
        positions=positions,
        embeddings=rows,
        index=index,
        advantage=signal.advantage[where],
        returns=None if signal.returns is None else signal.returns[where],
        old_log_prob=old,
        old_log_pi=old_log_pi,
        kl_weight=signal.kl_weight,
        n_sequences=max(1, int(sequences.sum())),
    )


def _std(values: Tensor, reduce_sum: Callable[[Tensor], Tensor]) -> float:
    """Standard deviation over all processes."""
    sums = reduce_sum(
        torch.stack([values.sum(), values.pow(2).sum(), torch.tensor(float(len(values)), dtype=values.dtype)])
    )
    mean = sums[0] / sums[2].clamp(min=1)
    variance = float(sums[1] / sums[2].clamp(min=1) - mean.pow(2))
    return math.sqrt(max(variance, 0.0))


def _values(proxy: ProxyModel, rollout: Rollout) -> Tensor:
    """`V(s_t)` at every position, `[S, n]`."""
    matrix = torch.zeros_like(rollout.kl)
    matrix[rollout.positions.sequence, rollout.positions.position] = proxy.value(rollout.positions.hidden)
    return matrix
