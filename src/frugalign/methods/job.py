"""The input of a method's `run` in a study: a base, prompts, preferences, a budget, and a ledger for the costs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from pathlib import Path

    from datasets import Dataset

    from frugalign.base.ledger import Ledger
    from frugalign.engines.loading import LoadedModel
    from frugalign.methods.budget import Budget


class Job(Protocol):
    """One run of one method. A line's setting overrides everything except the budget and the sizes that follow from it.

    Attributes:
        request: everything that the result depends on: the study's options by name, the line's `setting`, the `seed`.
        budget: the limits of the run.
        ledger: the costs so far.
        folder: a folder for the run's other files.
    """

    request: dict[str, Any]
    budget: Budget
    ledger: Ledger
    folder: Path

    @property
    def run_folder(self) -> Path:
        """The folder of the trained policy."""

    @property
    def setting(self) -> dict[str, Any]:
        """A copy of the line's options."""

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
        """The same, with some test prompts as `validation` for a learning curve. Nothing is selected by it."""

    @property
    def preferences(self) -> str | None:
        """A folder with the study's preference pairs, if it has any."""

    def prompts(self) -> Dataset:
        """The training prompts."""

    def n_prompts(self) -> int:
        """The number of distinct training prompts."""

    def load(self, *, trained: bool = False) -> LoadedModel:
        """Load the base; in float32 if it is to be trained."""

    def callbacks(self) -> list[Any]:
        """Callbacks for the trainer, such as the clock of a time budget."""

    def common(self) -> dict[str, Any]:
        """The options that all methods share: base, run folder, seed, device, length and temperature of responses."""

    def shared(self, *names: str) -> dict[str, Any]:
        """The study's options with these names, if they are given."""

    def spend(self, ledger: Ledger) -> None:
        """Add a training's costs and parameters to the run's."""

    def sampled_groups(self, size: int) -> Path:
        """A file of groups: `size` scored responses of the base per prompt, for as many prompts as the budget allows."""

    def sampled_pairs(self, size: int) -> Dataset:
        """The groups as pairs: best with worst, second with second-worst."""

    def pairs(self, size: int) -> str:
        """A folder with the study's preference pairs, else with pairs from `size` sampled responses."""

    def trained(self, method: str, setting: dict[str, Any], **changes: Any) -> dict[str, Any]:
        """The policy of another training, to build on. Lines share it, and each is charged its costs.

        Args:
            method: its method's name.
            setting: its line's options.
            changes: the study's options that differ for it, such as another reward.
        """

    def some_prompts(self, number: int | None) -> Path:
        """A folder with this many distinct training prompts (None: all), in an order that follows from the seed."""

    def representation_reward(self, size: int) -> str:
        """The study's representation reward.

        Without one, a reward is fitted at the run's cost: on the preferences, or on pairs from `size` sampled responses.
        """
