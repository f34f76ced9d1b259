"""Which prompts a round uses: a pure function of the seed and the round, so a resumed or a parallel run needs no data state."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Schedule:
    """Prompts of every round; an epoch is one pass over the prompts in a fresh order, a partial last round dropped."""

    n_prompts: int
    prompts_per_round: int
    seed: int

    @property
    def rounds_per_epoch(self) -> int:
        return max(1, self.n_prompts // self.prompts_per_round)

    def prompts(self, round_: int) -> tuple[int, list[int]]:
        """(epoch, indices `[prompts_per_round]`) of a round, for all processes together."""
        epoch, within = divmod(round_, self.rounds_per_epoch)
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
        order = torch.randperm(self.n_prompts, generator=generator).tolist()
        start = within * self.prompts_per_round
        # A data set smaller than one round is used several times in it; the samples of a prompt are numbered apart.
        chosen = [order[(start + i) % self.n_prompts] for i in range(self.prompts_per_round)]
        return epoch, chosen


def sample_numbers(indices: list[int], num_generations: int) -> list[int]:
    """Number the completions of each prompt 0, 1, … where every index stands for `num_generations` completions in a row."""
    seen: dict[int, int] = {}
    numbers = []
    for index in indices:
        for _ in range(num_generations):
            numbers.append(seen.get(index, 0))
            seen[index] = seen.get(index, 0) + 1
    return numbers
