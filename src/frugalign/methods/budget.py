"""Equal budgets: how many prompts, completions and steps a method may use. Pure arithmetic."""

from __future__ import annotations

from dataclasses import dataclass

from frugalign.base.errors import FrugalignError

GROUP_SIZE = 4
"""Default number of responses per prompt, for methods that sample groups."""
PAIRS_PER_STEP = 16
"""Default number of pairs per step."""


@dataclass(frozen=True)
class Budget:
    """The budget of a cell; None means no limit. `mean_length`, the base's tokens per response, converts tokens to responses."""

    generated_tokens: float | None = None
    optimizer_steps: float | None = None
    wall_clock_seconds: float | None = None
    mean_length: float = 1.0

    @property
    def responses(self) -> int | None:
        """Responses that the token budget covers."""
        return None if self.generated_tokens is None else max(1, int(self.generated_tokens / self.mean_length))

    @property
    def steps(self) -> int | None:
        """Optimiser steps."""
        return None if self.optimizer_steps is None else max(1, int(self.optimizer_steps))

    def on_policy(self, completions: int, *, group: int, steps_per_rollout: int) -> dict[str, int]:
        """`completions` per rollout (a multiple of `group`) and `max_steps`, for a method that steps a fixed number of times per rollout.

        Tokens and steps together determine the rollouts' size. Tokens alone determine the number of rollouts.

        Args:
            completions: completions per rollout, if the budget leaves it open.

        Raises:
            FrugalignError: a budget too small for one group in every rollout.
        """
        found: dict[str, int] = {}
        if self.responses is not None:
            completions = min(completions, self.responses)
            rollouts = self.responses / completions
            if self.steps is not None:
                rollouts = max(1, self.steps // steps_per_rollout)
                completions = int(self.responses / rollouts)
            if completions < group:
                raise FrugalignError(
                    f"The budget of {self.generated_tokens:,.0f} generated tokens is not enough for {group} responses "
                    f"of {self.mean_length:.0f} tokens in each of {rollouts:.0f} rollouts."
                )
            completions = completions // group * group
            found["max_steps"] = max(1, int(rollouts)) * steps_per_rollout
        elif self.steps is not None:
            found["max_steps"] = max(1, self.steps // steps_per_rollout) * steps_per_rollout
        return found | {"completions": completions}

    def prompts(self, responses_per_prompt: int, passes: int = 1) -> int | None:
        """The number of prompts, with this many responses per prompt in each of `passes` passes.

        Raises:
            FrugalignError: a budget too small for one prompt.
        """
        if self.responses is None:
            return None
        found = self.responses // (responses_per_prompt * passes)
        if not found:
            raise FrugalignError(
                f"The budget of {self.generated_tokens:,.0f} generated tokens is not enough for one prompt "
                f"with {responses_per_prompt * passes} responses of {self.mean_length:.0f} tokens."
            )
        return found


def batch_of(examples: int, steps: int | None) -> int | None:
    """The smallest batch size with which `steps` steps use every example; None without a step budget."""
    return None if steps is None else max(1, -(-examples // steps))
