"""Equal budgets in worked numbers."""

import pytest

from frugalign.base.errors import FrugalignError
from frugalign.methods.budget import Budget, batch_of


def test_tokens_become_responses_by_the_base_s_mean_length() -> None:
    """1,000 tokens at 20 each are 50 responses: 12 prompts of four, or 6 in two passes; no limit without tokens."""
    budget = Budget(generated_tokens=1000, mean_length=20)
    assert (budget.responses, budget.prompts(4), budget.prompts(4, passes=2)) == (50, 12, 6)
    assert Budget().prompts(4) is None and Budget().responses is None and Budget().steps is None
    with pytest.raises(FrugalignError, match="not enough for one prompt with 64 responses of 20 tokens"):
        budget.prompts(64)


def test_tokens_alone_give_the_number_of_rollouts() -> None:
    """500 responses in rollouts of 64: 7 whole ones, 4 steps each."""
    found = Budget(generated_tokens=10_000, mean_length=20).on_policy(64, group=8, steps_per_rollout=4)
    assert found == {"completions": 64, "max_steps": 28}


def test_tokens_and_steps_give_the_size_of_a_rollout() -> None:
    """40 steps are 10 rollouts of 4; 500 responses are 50 each, 48 as a multiple of 8."""
    budget = Budget(generated_tokens=10_000, optimizer_steps=40, mean_length=20)
    assert budget.on_policy(128, group=8, steps_per_rollout=4) == {"completions": 48, "max_steps": 40}


def test_rollouts_are_never_more_than_the_tokens_are_enough_for() -> None:
    """50 responses: one rollout of 48, not of 128; and not 64 rollouts of 16."""
    budget = Budget(generated_tokens=1000, mean_length=20)
    assert budget.on_policy(128, group=16, steps_per_rollout=2) == {"completions": 48, "max_steps": 2}
    with pytest.raises(FrugalignError, match="not enough for 16 responses of 20 tokens in each of 64 rollouts"):
        Budget(1000, 128, mean_length=20).on_policy(128, group=16, steps_per_rollout=2)


def test_steps_alone_leave_the_size_to_the_setting() -> None:
    found = Budget(optimizer_steps=10).on_policy(32, group=8, steps_per_rollout=4)
    assert found == {"completions": 32, "max_steps": 8}
    assert Budget().on_policy(128, group=8, steps_per_rollout=4) == {"completions": 128}


def test_a_batch_uses_every_example_within_the_steps() -> None:
    """100 examples in 8 steps: 13 each, 8 of which are enough and 12 would not be."""
    assert batch_of(100, 8) == 13 and -(-100 // 13) == 8 and -(-100 // 12) == 9
    assert batch_of(3, 8) == 1 and batch_of(100, None) is None
