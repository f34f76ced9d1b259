"""Which prompts a round uses."""

from __future__ import annotations

from frugalign.methods.proxy_rlhf.schedule import Schedule, sample_numbers


def test_an_epoch_visits_every_prompt_once_and_the_next_one_in_another_order() -> None:
    """12 prompts, 4 a round: rounds 0–2 are epoch 0, rounds 3–5 epoch 1; each epoch is a permutation."""
    schedule = Schedule(n_prompts=12, prompts_per_round=4, seed=3)
    epochs = [[index for within in range(3) for index in schedule.prompts(3 * epoch + within)[1]] for epoch in (0, 1)]
    assert [schedule.prompts(round_)[0] for round_ in range(7)] == [0, 0, 0, 1, 1, 1, 2]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(12))
    assert epochs[0] != epochs[1] and epochs[0] != list(range(12))


def test_a_round_is_a_pure_function_of_seed_and_number() -> None:
    assert Schedule(50, 8, 1).prompts(17) == Schedule(50, 8, 1).prompts(17)
    assert Schedule(50, 8, 1).prompts(17) != Schedule(50, 8, 2).prompts(17)


def test_a_partial_last_round_is_dropped() -> None:
    """10 prompts, 4 a round: two rounds an epoch, no prompt twice in one."""
    schedule = Schedule(10, 4, 0)
    assert schedule.rounds_per_epoch == 2
    first = schedule.prompts(0)[1] + schedule.prompts(1)[1]
    assert len(set(first)) == 8
    assert schedule.prompts(2)[0] == 1


def test_fewer_prompts_than_a_round_are_used_evenly() -> None:
    """3 prompts, 8 a round: each comes two or three times, and its samples are numbered on, so their noise differs."""
    schedule = Schedule(3, 8, 0)
    _, chosen = schedule.prompts(0)
    assert sorted(chosen.count(index) for index in range(3)) == [2, 3, 3]
    numbers = sample_numbers(chosen, 2)
    pairs = list(zip([index for index in chosen for _ in range(2)], numbers, strict=True))
    assert len(set(pairs)) == 16


def test_sample_numbers_worked_example() -> None:
    """Prompts 5, 7, 5 with two completions each: 0 1 | 0 1 | 2 3."""
    assert sample_numbers([5, 7, 5], 2) == [0, 1, 0, 1, 2, 3]
