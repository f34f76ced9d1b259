"""What a study hands a method's `run`: one base, prompts, preferences and a budget, and a ledger to write down what was spent."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from pathlib import Path

    from datasets import Dataset

    from frugalign.base.ledger import Ledger
    from frugalign.engines.loading import LoadedModel
    from frugalign.methods.budget import Budget


class Job(Protocol):
    """One run of one method. A line's setting overrides everything but the budget, and the sizes that follow from it.

    Attributes:
        request: everything that the result depends on: the study's options by name, the line's `setting`, the `seed`.
        budget: what may be spent.
        ledger: what was spent so far.
        folder: a folder for what the run leaves beside its result.
    """

    request: dict[str, Any]
    budget: Budget
    ledger: Ledger
    folder: Path

    @property
    def run_folder(self) -> Path:
        """Where the trained policy goes."""

    @property
    def setting(self) -> dict[str, Any]:
        """The line's options, a copy."""

    @property
    def seed(self) -> int:
        """The seed of weights and noise."""

    @property
    def use_cpu(self) -> bool:
        """Whether to stay on the CPU."""

    @property
    def dataset(self) -> str:
        """A folder with the training prompts as `train` and the study's test prompts as `test`."""

    @property
    def observed_dataset(self) -> str:
        """The same with some test prompts as `validation`, for a learning curve; nothing is chosen by it."""

    @property
    def preferences(self) -> str | None:
        """A folder with the study's preference pairs; None where it has none."""

    def prompts(self) -> Dataset:
        """The training prompts."""

    def n_prompts(self) -> int:
        """How many different ones there are."""

    def load(self, *, trained: bool = False) -> LoadedModel:
        """The base; in float32 where it is trained."""

    def callbacks(self) -> list[Any]:
        """For the trainer: the budget's clock, where it has one."""

    def common(self) -> dict[str, Any]:
        """The options that are the same for every method: base, run folder, seed, device, length and temperature of responses."""

    def shared(self, *names: str) -> dict[str, Any]:
        """These of the study's options, as far as they are given."""

    def spend(self, ledger: Ledger) -> None:
        """Add a training's costs and parameters to the run's."""

    def sampled_groups(self, size: int) -> Path:
        """A file of groups: `size` responses of the base to each prompt with the training reward, as many as the budget allows."""

    def sampled_pairs(self, size: int) -> Dataset:
        """The groups as pairs, best with worst, second with second-worst."""

    def some_prompts(self, number: int | None) -> Path:
        """A folder with so many different training prompts (None: all), in an order that the seed gives."""

    def representation_reward(self, size: int) -> str:
        """The study's representation reward; else one fitted, at the run's cost, on the preferences or on pairs of `size` sampled responses."""
