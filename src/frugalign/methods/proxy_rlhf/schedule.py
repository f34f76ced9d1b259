"""The prompts of each round, as a pure function of seed and round. Resumed and parallel runs need no data state."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Schedule:
    """The prompts of every round. Each epoch visits all prompts in a new order and drops a partial last round."""

    n_prompts: int
    prompts_per_round: int
    seed: int

    @property
    def rounds_per_epoch(self) -> int:
        return max(1, self.n_prompts // self.prompts_per_round)

    def prompts(self, round_: int) -> tuple[int, list[int]]:
        """(epoch, indices `[prompts_per_round]`) of a round, over all processes."""
        epoch, within = divmod(round_, self.rounds_per_epoch)
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
        order = torch.randperm(self.n_prompts, generator=generator)
        start = within * self.prompts_per_round
        # A data set smaller than one round is repeated in it. The repeats get different sample numbers.
        places = torch.arange(start, start + self.prompts_per_round) % self.n_prompts
        return epoch, order[places].tolist()


def sample_numbers(indices: list[int], num_generations: int) -> list[int]:
    """Number each prompt's completions 0, 1, …; every index stands for `num_generations` consecutive completions."""
    seen: dict[int, int] = {}
    numbers = []
    for index in indices:
        for _ in range(num_generations):
            numbers.append(seen.get(index, 0))
            seen[index] = seen.get(index, 0) + 1
    return numbers
