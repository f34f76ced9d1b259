"""Preference pairs for training and for evaluation: read, checked and split."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from frugalign.base.errors import FrugalignError
from frugalign.data.loading import load_splits
from frugalign.data.row_parts import Numbers, choose, each, kept_of
from frugalign.data.splits import (
    HELD_OUT_FRACTION,
    held_out_split,
    split_for,
    training_data_record,
    training_name,
    warn_of_shared_splits,
)
from frugalign.data.weights import WEIGHTS, check_weights

if TYPE_CHECKING:
    from datasets import Dataset

ANSWERS = ("chosen", "rejected")
ANSWER_IDS = tuple(f"{side}_completion_ids" for side in ANSWERS)
"""The token ids of sampled answers, with the end token of those that ended."""


def preference_pairs(
    name: str, *, hold_out: bool = False, weights: bool = False
) -> tuple[Dataset, Dataset | None, dict[str, Any]]:
    """Pairs of two different answers.

    Args:
        name: as for `load_splits`.
        hold_out: keep some pairs for evaluation: the split `validation` or `test`, else a tenth of the training
            prompts.
        weights: check and keep the columns `WEIGHTS`, where there are any, beside `prompt`, `chosen` and `rejected`.

    Returns:
        Training pairs, evaluation pairs (None without `hold_out`), and the record by which an artefact recognises its
        data.

    Raises:
        FrugalignError: the data cannot be read, a split has no such pair, or `weights` finds another value.
    """
    splits = load_splits(name, kind="preference")
    trained = training_name(splits, name)
    reserved = (split_for(splits, role, trained) for role in ("validation", "test"))
    found = next((split for split in reserved if split is not None), None)
    train, held_out = splits[trained], splits[found] if found is not None else None
    for rows in (train, held_out):
        if weights and rows is not None:
            check_weights(rows)
    takes_a_tenth = hold_out and held_out is None
    trained_on = training_data_record(name, train, held_out_fraction=HELD_OUT_FRACTION if takes_a_tenth else 0.0)
    if takes_a_tenth:
        train, held_out = held_out_split(train, HELD_OUT_FRACTION, 0)
    warn_of_shared_splits(name, splits, trained)
    keep = WEIGHTS if weights else ()
    held_out = _different(held_out, keep, f"{found} of {name}") if hold_out and held_out is not None else None
    return _different(train, keep, f"{trained} of {name}"), held_out, trained_on


def _different(rows: Dataset, keep: tuple[str, ...], split: str) -> Dataset:
    """The pairs of two different answers, without columns that are not used."""
    names = ["prompt", "chosen", "rejected", *(name for name in keep if name in rows.column_names)]
    found = different_answers(rows.select_columns(names))
    if not len(found):
        raise FrugalignError(f"The split {split} holds no pair of two different answers.")
    return found


def different_answers(rows: Dataset) -> Dataset:
    """The pairs of two different answers."""

    def differ() -> Numbers:
        both = zip(each(rows["chosen"]), each(rows["rejected"]), strict=True)
        return np.fromiter((chosen != rejected for chosen, rejected in both), dtype=bool, count=len(rows))

    return choose(rows, np.flatnonzero(kept_of(rows, ["different answers"], differ)))
