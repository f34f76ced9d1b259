"""A cell's task, as its method sees it: prompts, base, budget and ledger."""

from __future__ import annotations

import logging
import math
import time
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from datasets import Dataset

from frugalign.base.errors import FrugalignError
from frugalign.base.ledger import Costs, Ledger
from frugalign.data import held_out_split, load_splits
from frugalign.data.splits import HELD_OUT_FRACTION, column, content_key, distinct, split_for, training_name
from frugalign.engines.loading import LoadedModel, load_model
from frugalign.methods.budget import Budget
from frugalign.methods.registry import METHODS
from frugalign.study import base_samples
from frugalign.study.clock import StopAfter
from frugalign.study.layout import OBSERVED_FOLDER, PREFERENCES_FOLDER, PROMPTS_FOLDER, fitted_reward, training_run
from frugalign.study.plan import METHOD_INPUTS

_log = logging.getLogger(__name__)
_OBSERVED = 64
"""Test prompts of a learning curve."""


def prompt_splits(request: dict[str, Any]) -> dict[str, Dataset]:
    """The study's prompts as train, validation and test.

    A study with `choose` but no validation split holds out a tenth of the training prompts. Training prompts that are also in validation or
    test are left out, with a warning.

    Raises:
        FrugalignError: a data set without a test split, or without any prompt left to train on.
    """
    name, splits = request["dataset_name"], load_splits(request["dataset_name"])
    trained = training_name(splits, name)
    train, wanted = splits[trained], request["eval_split"]
    tested = wanted if wanted in splits else split_for(splits, wanted, trained)
    if tested is None or tested == trained:
        raise FrugalignError(f"{name} needs a split to train on and {wanted!r} to test on; it has {', '.join(splits)}.")
    found = {"train": train, "test": splits[tested]}
    if request.get("holds_out"):
        if (validation := split_for(splits, "validation", trained)) is not None:
            found["validation"] = splits[validation]
        else:
            train, found["validation"] = held_out_split(train, HELD_OUT_FRACTION, 0)
    reserved = _reserved_prompts(found)
    kept = [row for row, prompt in enumerate(column(train, "prompt")) if content_key(prompt) not in reserved]
    if not kept:
        raise FrugalignError(f"Every training prompt of {name} is also in its validation or test split.")
    if again := len(train) - len(kept):
        _log.warning(
            "%d training prompts of %s are also in its validation or test split. They are not trained on.", again, name
        )
    return found | {"train": train.select(kept)}


def _reserved_prompts(splits: dict[str, Dataset]) -> set[str]:
    """The validation and test prompts, which no method may train on."""
    names = [name for name in ("validation", "test") if name in splits]
    return {content_key(prompt) for name in names for prompt in column(splits[name], "prompt")}


@dataclass
class Task:
    """The `Job` of a cell.

    Attributes:
        request: everything that the cell's result depends on.
        folder: of its training.
        jobs: cells that the runner runs at once.
        ledger: what it has spent.
        paid: folders whose costs are in the ledger already.
        cpu_elsewhere: CPU seconds of shared work, less what this process spent on it.
    """

    request: dict[str, Any]
    folder: Path
    budget: Budget
    jobs: int = 1
    ledger: Ledger = field(default_factory=Ledger)
    paid: set[Path] = field(default_factory=set)
    cpu_elsewhere: float = 0.0
    started: float = field(default_factory=time.perf_counter)

    @cached_property
    def splits(self) -> dict[str, Dataset]:
        """The study's prompts, read once."""
        return prompt_splits(self.request)

    @property
    def run_folder(self) -> Path:
        """Where the trained policy is saved, inside the training's folder."""
        return training_run(self.folder)

    @property
    def setting(self) -> dict[str, Any]:
        """The line's options."""
        return dict(self.request["setting"])

    @property
    def seed(self) -> int:
        """The cell's seed."""
        return int(self.request["seed"])

    @property
    def use_cpu(self) -> bool:
        """Whether to stay on the CPU."""
        return bool(self.request.get("use_cpu", False))

    @property
    def deadline(self) -> float:
        """When the time budget ends, on the clock of `time.perf_counter`."""
        seconds = self.budget.wall_clock_seconds
        return math.inf if seconds is None else self.started + seconds

    def callbacks(self) -> list[Any]:
        """The callback that stops the training, where the budget is a time."""
        return [] if self.deadline == math.inf else [StopAfter(self.deadline)]

    def load(self, *, trained: bool = False) -> LoadedModel:
        """The base; in float32 where it is trained."""
        with self.ledger.phase("load"):
            return load_model(
                self.request["model_name_or_path"],
                device_map="cpu" if self.use_cpu else None,
                dtype="float32" if trained else None,
            )

    def prompts(self) -> Dataset:
        """The training prompts."""
        return load_splits(self.dataset)["train"]

    def n_prompts(self) -> int:
        """The number of distinct training prompts."""
        return len(distinct(column(self.prompts(), "prompt")))

    @property
    def dataset(self) -> str:
        """A folder with the training prompts as `train` and the test prompts as `test`, so that no method holds out more."""
        return self._prompts_in(PROMPTS_FOLDER)

    @property
    def observed_dataset(self) -> str:
        """The same with the first test prompts as `validation` too, for a learning curve. Nothing is chosen by it."""
        return self._prompts_in(OBSERVED_FOLDER, observed=True)

    def _prompts_in(self, name: str, *, observed: bool = False) -> str:
        folder = self.folder / name
        if not (folder / "train.jsonl").is_file():
            folder.mkdir(parents=True, exist_ok=True)
            parts, tested = self.splits, self.splits["test"]
            shown = {"validation": tested.select(range(min(len(tested), _OBSERVED)))} if observed else {}
            # The train split comes last: a folder without it is incomplete.
            for split, rows in {**shown, "test": tested, "train": parts["train"]}.items():
                rows.to_json(str(folder / f"{split}.jsonl"))
        return str(folder)

    @property
    def preferences(self) -> str | None:
        """The stored preferences without those on validation or test prompts. None where the study names none."""
        name = self.request.get("preferences")
        if name is None:
            return None
        folder = self.folder / PREFERENCES_FOLDER
        if not (folder / "train.jsonl").is_file():
            folder.mkdir(parents=True, exist_ok=True)
            reserved = _reserved_prompts(self.splits)
            splits = load_splits(name, kind="preference")
            # The train split comes last: a folder without it is incomplete.
            for split, rows in sorted(splits.items(), key=lambda item: item[0] == "train"):
                kept = [row for row, prompt in enumerate(column(rows, "prompt")) if content_key(prompt) not in reserved]
                if kept or split == "train":
                    rows.select(kept).to_json(str(folder / f"{split}.jsonl"))
        return str(folder)

    def shared(self, *names: str) -> dict[str, Any]:
        """These of the study's options, as far as it sets them."""
        return {name: self.request[name] for name in names if name in self.request}

    def common(self) -> dict[str, Any]:
        """The options that are the same for every method of ours."""
        found = {
            "output_dir": str(self.run_folder),
            "overwrite_output_dir": True,
            "seed": self.seed,
            "use_cpu": self.use_cpu,
        }
        found |= {"disable_tqdm": True, "model_name_or_path": self.request["model_name_or_path"]}
        return found | self.shared("max_new_tokens", "temperature", "prompt_format", "chat_template_kwargs")

    def spend(self, ledger: Ledger) -> None:
        """Add a training's costs to the cell's, and take over its parameter counts."""
        self.ledger.add(ledger)
        self.ledger.set_parameters(trainable=ledger.trainable_parameters, base=ledger.base_parameters)

    def sampled_groups(self, size: int) -> Path:
        """A file of groups: `size` responses of the base to each prompt with the training reward, within the budget."""
        return base_samples.sampled_groups(self, size)

    def sampled_pairs(self, size: int) -> Dataset:
        """The groups as pairs: best with worst, second with second-worst."""
        return base_samples.sampled_pairs(self, size)

    def some_prompts(self, number: int | None) -> Path:
        """A folder with `number` distinct training prompts (None: all), shuffled by the seed."""
        return base_samples.prompts_folder(self, number)

    def pairs(self, size: int) -> str:
        """A folder of the stored preferences, else of pairs of `size` sampled responses."""
        return self.preferences or str(base_samples.sampled_pairs_folder(self, size))

    def trained(self, method: str, setting: dict[str, Any], **changes: Any) -> dict[str, Any]:
        """The policy of another training, which all lines that build on it share. Its costs are added.

        Args:
            method: of the library. The own method must need or read what it reads.
            setting: as in its line.
            changes: options of the study that it has instead, such as another reward.
        """
        from frugalign.study.training import trained

        read = METHODS[method].study_options
        request = {name: value for name, value in self.request.items() if name not in METHOD_INPUTS or name in read} | {
            "method": method,
            "setting": setting,
        }
        clock = self.clock()
        found = trained(request | changes, self.folder.parent, lambda: self.budget, jobs=self.jobs)
        spent = Ledger()
        spent.load_dict(found["costs"])
        self.spend(spent)
        self.charge(found["costs"], clock)
        return found["policy"]

    def clock(self) -> tuple[float, float]:
        """Seconds and CPU seconds so far."""
        return time.perf_counter(), time.process_time()

    def charge(self, costs: Costs, since: tuple[float, float]) -> None:
        """Charge the seconds of shared work, apart from those that this process has spent on it `since`."""
        now = self.clock()
        self.ledger.add(Ledger(), costs.get("wall_clock_seconds", 0.0) - (now[0] - since[0]))
        self.cpu_elsewhere += costs.get("cpu_seconds", 0.0) - (now[1] - since[1])

    def representation_reward(self, size: int) -> str:
        """The study's representation reward. Without one it is fitted, at the cell's cost, on the preferences or on pairs of `size` samples."""
        name = "representation_reward"
        if name in self.request:
            return str(self.request[name])
        fit = METHODS[name].fit
        assert fit is not None, "the method of this name has a fit"
        folder = fitted_reward(self.folder)
        fit(self, self.pairs(size), folder)
        return str(folder)
