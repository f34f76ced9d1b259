"""Preference data: pairs, or single answers labelled good or bad."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from frugalign.base.errors import FrugalignError
from frugalign.data.formats import conversion_hint
from frugalign.data.load_files import all_files, load_files
from frugalign.data.loading import as_datasets
from frugalign.data.splits import column, prompt_key

if TYPE_CHECKING:
    from datasets import Dataset


@dataclass(frozen=True)
class PreferenceData:
    """Answers with their preferences. `prompts[i]` and `answers[i]` belong together; duplicates are stored once.

    `pairs`: (row of the better answer, row of the worse one). `labels`: (row, 1.0 for good or 0.0 for bad). Only one
    of the two is filled. `n_dropped`: pairs of equal texts. `groups`: the group of each example, or empty.
    """

    prompts: list[Any]
    answers: list[Any]
    pairs: list[tuple[int, int]]
    labels: list[tuple[int, float]]
    n_dropped: int = 0
    groups: list[str] = field(default_factory=list)

    @property
    def is_paired(self) -> bool:
        return bool(self.pairs)

    def __len__(self) -> int:
        """The number of examples, not of answers."""
        return len(self.pairs) or len(self.labels)

    def better_and_worse(self, examples: Sequence[int]) -> tuple[list[int], list[int]]:
        """Rows of the better and of the worse answers: a pair's two sides, or the answers labelled good and those
        labelled bad."""
        if self.pairs:
            return [self.pairs[example][0] for example in examples], [self.pairs[example][1] for example in examples]
        labelled = [self.labels[example] for example in examples]
        return [row for row, label in labelled if label], [row for row, label in labelled if not label]

    def prompt_of(self, example: int) -> str:
        """The prompt of an example as one string, by which examples are split."""
        row = self.pairs[example][0] if self.pairs else self.labels[example][0]
        return prompt_key(self.prompts[row])


def load_preference_data(name: str, group_column: str | None = None) -> dict[str, PreferenceData]:
    """Every split of a data set of preference pairs or labelled answers (TRL's `preference` and `unpaired_preference`).

    Args:
        name: as for `load_splits`.
        group_column: the column that names each example's group, such as the kind of its prompt.

    Raises:
        FrugalignError: the data is missing, of another kind, has an unusable row, lacks the group column, or holds no
            usable example.
    """
    files = load_files(name)
    kinds = {each.kind for each in all_files(files)}
    kind = next(iter(kinds)) if len(kinds) == 1 else "mixed"
    if kind not in ("preference", "unpaired-preference"):
        first = all_files(files)[0]
        hint = conversion_hint(first.columns, first.file)
        if not hint and kind == "prompt-completion" and "label" in first.columns:
            hint = "; `frugalign convert` reads labels of 0 and 1"
        raise FrugalignError(
            f"{name} holds no preference data: it needs prompt, chosen and rejected, or prompt, completion and a label "
            f"of true and false{hint}."
        )
    found = {}
    for split, dataset in as_datasets(files, name).items():
        if group_column is not None and group_column not in dataset.column_names:
            raise FrugalignError(
                f"The split {split} of {name} has no column {group_column}, which would name the groups; its columns "
                f"are {', '.join(dataset.column_names)}."
            )
        groups = (
            None if group_column is None else ["—" if value is None else str(value) for value in dataset[group_column]]
        )
        found[split] = paired([dataset], groups) if kind == "preference" else _labels(dataset, groups)
    for split, preferences in found.items():
        if not len(preferences):
            raise FrugalignError(f"The split {split} of {name} holds no pair of two different answers.")
    return found


class _Answers:
    """Distinct (prompt, answer) rows."""

    def __init__(self) -> None:
        self.prompts: list[Any] = []
        self.answers: list[Any] = []
        self._rows: dict[tuple[str, str], int] = {}

    def row(self, prompt: Any, answer: Any) -> int:
        key = (prompt_key(prompt), prompt_key(answer))
        if key not in self._rows:
            self._rows[key] = len(self.answers)
            self.prompts.append(prompt)
            self.answers.append(answer)
        return self._rows[key]


def paired(parts: Sequence[Dataset], groups: Sequence[str] | None = None) -> PreferenceData:
    """The pairs of some data sets, one after the other, as one. `groups`: of each pair."""
    kept, pairs, dropped, kept_groups = _Answers(), [], 0, []
    columns = ([each for part in parts for each in column(part, name)] for name in ("prompt", "chosen", "rejected"))
    for place, (prompt, chosen, rejected) in enumerate(zip(*columns, strict=True)):
        better, worse = kept.row(prompt, chosen), kept.row(prompt, rejected)
        if better == worse:
            dropped += 1
        else:
            pairs.append((better, worse))
            kept_groups += [] if groups is None else [groups[place]]
    return PreferenceData(kept.prompts, kept.answers, pairs, [], dropped, kept_groups)


def _labels(dataset: Dataset, groups: Sequence[str] | None) -> PreferenceData:
    kept = _Answers()
    columns = (column(dataset, name) for name in ("prompt", "completion", "label"))
    labels = [(kept.row(prompt, answer), float(label)) for prompt, answer, label in zip(*columns, strict=True)]
    return PreferenceData(kept.prompts, kept.answers, [], labels, groups=list(groups or ()))
