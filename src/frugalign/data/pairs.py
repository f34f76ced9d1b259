"""Preference pairs for training and for evaluation: read, checked and split."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from frugalign.base.errors import FrugalignError
from frugalign.data.labelled import extract_prompt
from frugalign.data.loading import HELD_OUT_FRACTION, held_out_split, load_splits, training_data_record, training_split

if TYPE_CHECKING:
    from datasets import Dataset


def preference_pairs(
    name: str, *, hold_out: bool = False, keep: Sequence[str] = ()
) -> tuple[Dataset, Dataset | None, dict[str, Any]]:
    """Pairs of two different answers.

    Args:
        name: as for `load_splits`.
        hold_out: keep some pairs for evaluation: the split `validation` or `test`, else a tenth of the training
            prompts.
        keep: columns to keep beside `prompt`, `chosen` and `rejected`, if present.

    Returns:
        Training pairs, evaluation pairs (None without `hold_out`), and the record by which an artefact recognises its
        data.

    Raises:
        FrugalignError: the data cannot be read, or a split has no such pair.
    """
    from datasets import Dataset

    splits: dict[str, Dataset] = {}
    for split, rows in load_splits(name, kind="preference").items():
        columns: dict[str, list[Any]] = {}
        for row in rows:
            prompt, chosen, rejected = extract_prompt(row)
            if chosen != rejected:
                pair = {"prompt": prompt, "chosen": chosen, "rejected": rejected}
                pair |= {column: row[column] for column in keep if column in row}
                for column, value in pair.items():
                    columns.setdefault(column, []).append(value)
        if not columns:
            raise FrugalignError(f"The split {split} of {name} holds no pair of two different answers.")
        splits[split] = Dataset.from_dict(columns)
    train = training_split(splits)
    held_out = next((splits[split] for split in ("validation", "test") if split in splits), None)
    takes_a_tenth = hold_out and held_out is None
    trained_on = training_data_record(name, train, held_out_fraction=HELD_OUT_FRACTION if takes_a_tenth else 0.0)
    if takes_a_tenth:
        train, held_out = held_out_split(train, HELD_OUT_FRACTION, 0)
    return train, held_out if hold_out else None, trained_on
