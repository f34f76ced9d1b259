"""From completions and rewards to the numbers of metrics.json: pure bookkeeping, no model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from frugalign.metrics import (
    Estimate,
    distinct_n,
    is_refusal,
    mean_interval,
    paired_difference,
    ratio_interval,
    win_rate,
)


@dataclass(frozen=True)
class Sampled:
    """Completions of one policy, a row each: text, token ids (end token too), ended or not, rewards by name."""

    texts: list[str]
    ids: list[list[int]]
    ended: list[bool]
    rewards: dict[str, list[float | None]]

    @property
    def main(self) -> list[float | None]:
        """The first reward's values."""
        return next(iter(self.rewards.values()))


def metrics_of(
    policy: Sampled,
    base: Sampled,
    prompts: Sequence[int],
    *,
    kl: Sequence[float] | None,
    kl_restriction: Sequence[float] | None,
    base_log_probs: Sequence[float],
    labels: Sequence[str] | None,
) -> dict[str, Any]:
    """The estimates of metrics.json.

    Args:
        prompts: the prompt's number of each row; intervals resample prompts.
        kl, kl_restriction: nats a sequence, None where there is none.
        base_log_probs: the base's log-probability of each of the policy's completions at temperature 1.
        labels: `safe` or `unsafe` by prompt number, None without labels.
    """
    lengths = [float(len(ids)) for ids in policy.ids]

    def mean(values: Sequence[float | None]) -> dict[str, Any] | None:
        return _dict(mean_interval(values, prompts))

    per_token = None if kl is None else ratio_interval(kl, lengths, prompts)
    nll = ratio_interval([-value for value in base_log_probs], lengths, prompts)
    metrics: dict[str, Any] = {
        "reward": mean(policy.main),
        "base_reward": mean(base.main),
        "reward_difference": _dict(paired_difference(policy.main, base.main, prompts)),
        "rewards": {name: mean(values) for name, values in policy.rewards.items()},
        "base_rewards": {name: mean(values) for name, values in base.rewards.items()},
        "reward_differences": {
            name: _dict(paired_difference(values, base.rewards[name], prompts))
            for name, values in policy.rewards.items()
        },
        "win_rate": _dict(win_rate(policy.main, base.main, prompts)),
        "kl_per_sequence": None if kl is None else mean(list(kl)),
        "kl_restriction": None if kl_restriction is None else mean(list(kl_restriction)),
        "kl_per_token": _dict(per_token),
        "perplexity_base": _dict(_exponential(nll)),
    }
    for prefix, sampled in (("", policy), ("base_", base)):
        refused = [float(is_refusal(text)) for text in sampled.texts]
        safe = [
            value if labels is not None and labels[prompt].strip().lower() == "safe" else None
            for value, prompt in zip(refused, prompts, strict=True)
        ]
        metrics |= {
            f"{prefix}distinct_2": mean([distinct_n(ids, 2) for ids in sampled.ids]),
            f"{prefix}mean_length": mean([float(len(ids)) for ids in sampled.ids]),
            f"{prefix}ended_rate": mean([float(ended) for ended in sampled.ended]),
            f"{prefix}refusal_rate": mean(refused),
            f"{prefix}over_refusal_rate": mean(safe),
        }
    return metrics


def _exponential(estimate: Estimate | None) -> Estimate | None:
    """Mean negative log-likelihood a token to perplexity; capped where a float cannot hold it."""
    if estimate is None:
        return None
    mean, low, high = (math.exp(min(value, 700.0)) for value in (estimate.mean, estimate.ci_low, estimate.ci_high))
    return Estimate(mean, low, high, estimate.n)


def _dict(estimate: Estimate | None) -> dict[str, Any] | None:
    return None if estimate is None else estimate.to_dict()
