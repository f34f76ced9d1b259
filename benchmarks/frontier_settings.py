"""What the frontier benchmark runs: the budget, and six settings of each method, in the order in which they run.

Learning rates of the two RLOO forms were bracketed on short pilot runs on the same held-out training prompts (above 1e-3, and 3e-3 with LoRA, the KL
runs away within a few rollouts); the proxy keeps its defaults and varies only the threshold and the KL target. Interleaved, so that a benchmark that is stopped early still compares like with like.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

LEVELS = (5.0, 10.0, 20.0)
"""Nats per sequence at which the methods are compared."""
P_T_AT_FIRST_LEVEL = 1e-3
"""The largest `p_t` a proxy may use at the first level: a coarser restriction would spend the KL before anything is learned."""


@dataclass(frozen=True)
class Budget:
    """The same for every trained run: `rollouts * completions * new_tokens` is the most it may sample."""

    rollouts: int = 80
    completions: int = 128
    num_generations: int = 8
    new_tokens: int = 96
    checkpoints: int = 8
    validation_prompts: int = 96
    validation_samples: int = 2
    test_samples: int = 8
    reads_test: bool = True

    @property
    def tokens(self) -> int:
        return self.rollouts * self.completions * self.new_tokens

    @property
    def label(self) -> str:
        return f"{self.rollouts}x{self.completions}x{self.new_tokens}"


FULL = Budget()
# Trying the script out does not read the test prompts: validation prompts stand in for them.
QUICK = Budget(
    rollouts=4,
    completions=32,
    new_tokens=24,
    checkpoints=2,
    validation_prompts=12,
    validation_samples=1,
    test_samples=2,
    reads_test=False,
)


@dataclass(frozen=True)
class Setting:
    """One run: a method and the options in which it differs from the method's others."""

    method: str
    options: dict[str, Any]

    @property
    def name(self) -> str:
        return "_".join([self.method, *(f"{key}={value:g}" for key, value in self.options.items())])


def _proxy(p_t: float, target_kl: float) -> Setting:
    return Setting("proxy", {"p_t": p_t, "target_kl": target_kl})


def _bias(p_t: float, target_kl: float) -> Setting:
    """One number per token has to move further than a network's weights: ten times the proxy's learning rate."""
    return Setting("token-bias", {"p_t": p_t, "target_kl": target_kl, "learning_rate": 0.1})


def _rloo(learning_rate: float, beta: float) -> Setting:
    return Setting("rloo", {"learning_rate": learning_rate, "beta": beta})


def _lora(learning_rate: float, beta: float) -> Setting:
    return Setting("rloo-lora", {"learning_rate": learning_rate, "beta": beta, "r": 8})


SETTINGS: tuple[Setting, ...] = (
    *(Setting("untrained", {"p_t": p_t}) for p_t in (1e-2, 1e-3, 1e-4, 1e-1)),
    _proxy(1e-3, target_kl=10),
    _rloo(2e-4, 0.03),
    _lora(1e-3, 0.03),
    _proxy(1e-2, target_kl=20),
    _rloo(1e-4, 0.03),
    _lora(1e-3, 0.1),
    _proxy(1e-3, target_kl=5),
    _proxy(1e-2, target_kl=14),
    _bias(1e-2, target_kl=14),
    _rloo(2e-4, 0.1),
    _lora(5e-4, 0.03),
    _proxy(1e-3, target_kl=20),
    _rloo(4e-4, 0.03),
    _lora(2e-3, 0.03),
    _proxy(1e-4, target_kl=5),
    _bias(1e-3, target_kl=10),
    _rloo(1e-4, 0.1),
    _lora(5e-4, 0.1),
    _rloo(4e-4, 0.1),
    _lora(2e-3, 0.1),
)
FIRST_OF_EACH: tuple[Setting, ...] = tuple({setting.method: setting for setting in reversed(SETTINGS)}.values())
"""What `--quick` runs."""
