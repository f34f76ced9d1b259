"""Data sets with a checked `prompt` column, their splits, and the prompts to train on or to evaluate on."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from frugalign.base.errors import FrugalignError
from frugalign.data.load_files import LoadedFile, all_files, load_files
from frugalign.data.on_disk import join, key_of
from frugalign.data.read_files import role_of
from frugalign.data.rows import one_line
from frugalign.data.splits import (
    HELD_OUT_FRACTION,
    dataset_fingerprint,
    held_out_split,
    split_for,
    training_data_record,
    training_name,
    warn_of_shared,
    warn_of_shared_splits,
)
from frugalign.data.validate import raise_first_problem
from frugalign.data.weights import check_weights

if TYPE_CHECKING:
    from datasets import Dataset

_log = logging.getLogger(__name__)


def load_splits(name: str, *, kind: str = "prompt-only") -> dict[str, Dataset]:
    """Every split of a data set, standardised: the columns of its type, and all its other columns.

    `prompt` is text or a list of {role, content}, and so are the answers. A `system` column is the first message of the
    prompt. Pairs that hold their prompt within both answers, or repeat it there, have it in `prompt` alone.

    Args:
        name: hub id, file, folder, or `package.module:attribute` that names one of these. Files are .jsonl, .json,
            .csv or .parquet, also .gz. In a folder, files named train*, test* and validation* are the splits. A
            single file is the split `train`.
        kind: the dataset type whose columns are checked.

    Raises:
        FrugalignError: the data is missing, or a row cannot be used. The message gives file, row, reason and the
            number of further problems.
    """
    return as_datasets(load_files(name, kind), name)


def as_datasets(splits: Mapping[str, Sequence[LoadedFile]], name: str) -> dict[str, Dataset]:
    """Loaded files as data sets, one per split. Their warnings are logged.

    Raises:
        FrugalignError: a file has a problem.
    """
    files = all_files(splits)
    raise_first_problem([problem for each in files for problem in each.problems], name)
    for each in files:
        for warning in each.warnings:
            _log.warning("%s", warning)
    return {split: _dataset(name, parts) for split, parts in splits.items()}


def load_prompts(name: str, *, split: str | None = None, trained_on: Mapping[str, Any] | None = None) -> Dataset:
    """The rows to work on.

    Args:
        name: as for `load_splits`.
        split: `train`, `test`, `all` or any other split of the data set. Default: `test` if it exists, else the
            held-out rows if an artefact was trained on this data, else all rows. `test` also means a split such as
            `test_prefs`.
        trained_on: the artefact's record, `{"name", "fingerprint", "held_out_fraction", "seed"}`. If the fingerprint
            matches this data, `test` means its held-out rows and `train` the others.

    Raises:
        FrugalignError: as `load_splits`, or the split does not exist.
    """
    splits = load_splits(name)
    if split == "all":
        return _concatenate(name, list(splits.values()))
    trained = split_for(splits, "train")
    parts = dict(splits)
    for role in ("train", "validation", "test"):
        if (found := split_for(splits, role, trained or "")) is not None:
            parts.setdefault(role, splits[found])
    if trained_on and trained is not None and dataset_fingerprint(splits[trained]) == trained_on.get("fingerprint"):
        used = split or "test"
        if used in parts and role_of(used) in ("validation", "test"):
            warn_of_shared(name, parts[used]["prompt"], splits[trained]["prompt"], str(role_of(used)))
        if "test" not in parts and trained_on.get("held_out_fraction"):
            fraction, seed = float(trained_on["held_out_fraction"]), int(trained_on.get("seed", 0))
            parts["train"], parts["test"] = held_out_split(splits[trained], fraction, seed)
        elif "test" not in parts and split is None:
            _log.warning("%s is what this was trained on, and none of it was held out.", name)
    if split is None:
        return parts["test"] if "test" in parts else _concatenate(name, list(splits.values()))
    if split not in parts:
        raise FrugalignError(f"The data set {name} has no split {split!r}; it has {', '.join(splits)} (or all).")
    return parts[split]


def training_prompts(
    name: str, *, hold_out: bool, weights: bool = False
) -> tuple[Dataset, Dataset | None, dict[str, Any]]:
    """Prompts to train on, held-out prompts (None without `hold_out`), and what an artefact stores to recognise its data.

    A test split is never trained on or returned. Without one, a tenth of the training prompts is held out, and `evaluate`
    recognises it. The held-out prompts are the validation split, or else that tenth. Test and validation prompts that
    are also trained on are counted in a warning. `weights`: the training prompts may have columns `WEIGHTS`, which are checked.

    Raises:
        FrugalignError: as `load_splits`, the data set has only a test split, or a weight is no such number.
    """
    splits = load_splits(name)
    trained = training_name(splits, name)
    train, tests = splits[trained], split_for(splits, "test", trained)
    if weights:
        check_weights(train)
    validation = split_for(splits, "validation", trained)
    held_out = splits[validation] if validation is not None else None
    trained_on = training_data_record(name, train, held_out_fraction=0.0 if tests else HELD_OUT_FRACTION)
    warn_of_shared_splits(name, splits, trained)
    if tests is None or (hold_out and held_out is None):
        train, tenth = held_out_split(train, HELD_OUT_FRACTION, 0)
        held_out = held_out if held_out is not None else tenth
    return train, held_out if hold_out else None, trained_on


def _dataset(name: str, files: Sequence[LoadedFile]) -> Dataset:
    from datasets import Dataset
    from datasets.table import InMemoryTable, MemoryMappedTable, concat_tables

    tables = [each.table for each in files if each.table is not None]
    stored = [str(each.stored) for each in files if each.stored is not None]
    try:
        if len(stored) == len(files) and all(table.schema == tables[0].schema for table in tables):
            kept = concat_tables([MemoryMappedTable.from_file(path) for path in stored])
            return Dataset(kept, fingerprint=key_of("split", [Path(path).name for path in stored]))
        return Dataset(InMemoryTable(join(tables)))
    except Exception as error:  # a type of Arrow that `datasets` does not know
        raise FrugalignError(f"The data set {name} has a column that cannot be used: {one_line(error)}.") from error


def _concatenate(name: str, parts: Sequence[Dataset]) -> Dataset:
    if len(parts) == 1:
        return parts[0]
    from datasets import concatenate_datasets

    try:
        return concatenate_datasets(list(parts))
    except Exception as error:
        raise FrugalignError(f"The splits of {name} do not fit together: {one_line(error)}.") from error
