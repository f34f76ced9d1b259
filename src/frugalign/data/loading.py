"""Data sets with a checked `prompt` column, their splits, and the fingerprints by which an artefact recognises its
data."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from frugalign.base.errors import FrugalignError
from frugalign.data.read_files import Rows, read_splits
from frugalign.data.validate import check_rows, raise_first_problem

if TYPE_CHECKING:
    from datasets import Dataset

HELD_OUT_FRACTION = 0.1
"""The share of prompts held out if a data set has no test split."""
_log = logging.getLogger(__name__)


def load_splits(name: str, *, kind: str = "prompt-only") -> dict[str, Dataset]:
    """Every split of a data set, each with a checked `prompt` column (strings, or lists of {role, content}) and all
    its other columns.

    Args:
        name: hub id, file, folder, or `package.module:attribute` that names one of these. Files are .jsonl, .json,
            .csv or .parquet, also .gz. In a folder, files named train*, test* and validation* are the splits. A
            single file is the split `train`.
        kind: the dataset type whose columns are checked.

    Raises:
        FrugalignError: the data is missing, or a row cannot be used. The message gives file, row, reason and the
            number of further problems.
    """
    splits = read_splits(name)
    raise_first_problem(
        [problem for files in splits.values() for rows in files for problem in check_rows(rows, kind)], name
    )
    return {split: _join(name, [_dataset(rows) for rows in files]) for split, files in splits.items()}


def load_prompts(name: str, *, split: str | None = None, trained_on: Mapping[str, Any] | None = None) -> Dataset:
    """The rows to work on.

    Args:
        name: as for `load_splits`.
        split: `train`, `test`, `all` or any other split of the data set. Default: `test` if it exists, else the
            held-out rows if an artefact was trained on this data, else all rows.
        trained_on: the artefact's record, `{"name", "fingerprint", "held_out_fraction", "seed"}`. If the fingerprint
            matches this data, `test` means its held-out rows and `train` the others.

    Raises:
        FrugalignError: as `load_splits`, or the split does not exist.
    """
    splits = load_splits(name)
    main = training_split(splits)
    parts = {"all": _join(name, list(splits.values()))} | splits
    if "test" not in splits and trained_on and dataset_fingerprint(main) == trained_on.get("fingerprint"):
        if trained_on.get("held_out_fraction"):
            fraction, seed = float(trained_on["held_out_fraction"]), int(trained_on.get("seed", 0))
            parts["train"], parts["test"] = held_out_split(main, fraction, seed)
        elif split is None:
            _log.warning("%s is what this was trained on, and none of it was held out.", name)
    if split is None:
        split = "test" if "test" in parts else "all"
    if split not in parts:
        raise FrugalignError(f"The data set {name} has no split {split!r}; it has {', '.join(splits)} (or all).")
    return parts[split]


def training_split(splits: Mapping[str, Dataset]) -> Dataset:
    """The split `train`, or the first split if there is no `train`."""
    return splits.get("train", next(iter(splits.values())))


def training_prompts(name: str, *, hold_out: bool) -> tuple[Dataset, Dataset | None, dict[str, Any]]:
    """Prompts to train on, held-out prompts (None without `hold_out`), and what an artefact stores to recognise its data.

    A test split is never trained on or returned. Without one, a tenth of the training prompts is held out, and `evaluate`
    recognises it. The held-out prompts are the validation split, or else that tenth.

    Raises:
        FrugalignError: as `load_splits`, or the data set has only a test split.
    """
    splits = load_splits(name)
    if set(splits) == {"test"}:
        raise FrugalignError(f"{name} holds a test split only, and training on the test data is refused.")
    train = training_split(splits)
    tests = "test" in splits
    held_out = splits.get("validation")
    trained_on = training_data_record(name, train, held_out_fraction=0.0 if tests else HELD_OUT_FRACTION)
    if not tests or (hold_out and held_out is None):
        train, tenth = held_out_split(train, HELD_OUT_FRACTION, 0)
        held_out = held_out if held_out is not None else tenth
    return train, held_out if hold_out else None, trained_on


def training_data_record(name: str | None, rows: Dataset, *, held_out_fraction: float) -> dict[str, Any]:
    """The record that an artefact stores about its data, held-out rows included. `load_prompts` recognises the data
    by it."""
    return {
        "name": name,
        "fingerprint": dataset_fingerprint(rows),
        "held_out_fraction": held_out_fraction,
        "seed": 0,
    }


def held_out_split(dataset: Dataset, fraction: float = 0.1, seed: int = 0) -> tuple[Dataset, Dataset]:
    """Rows to train on and rows held out: a share of the distinct prompts, drawn by hash.

    Equal prompts stay together. The choice depends on the set of prompts and the seed, not on the row order.

    Raises:
        FrugalignError: there are fewer than two distinct prompts.
    """
    keys = [prompt_key(prompt) for prompt in dataset["prompt"]]
    ranked = sorted(set(keys), key=lambda key: hashlib.sha256(f"{seed}:{key}".encode()).digest())
    if len(ranked) < 2:
        raise FrugalignError("The data set has fewer than two distinct prompts, so none can be held out.")
    n_held_out = min(len(ranked) - 1, max(1, round(fraction * len(ranked))))
    chosen = set(ranked[:n_held_out])
    train = [row for row, key in enumerate(keys) if key not in chosen]
    held_out = [row for row, key in enumerate(keys) if key in chosen]
    return dataset.select(train), dataset.select(held_out)


def dataset_fingerprint(dataset: Dataset) -> str:
    """A hash of the prompts. Row order and other columns do not matter."""
    digest = hashlib.sha256()
    for key in sorted(prompt_key(prompt) for prompt in dataset["prompt"]):
        digest.update(hashlib.sha256(key.encode()).digest())
    return digest.hexdigest()[:32]


def rows_fingerprint(dataset: Dataset) -> str:
    """A hash of the prompts in order, and of `weight` if that column exists. Equal hashes mean that row numbers
    agree."""
    weights = dataset["weight"] if "weight" in dataset.column_names else []
    keys = [prompt_key(prompt) for prompt in dataset["prompt"]]
    return hashlib.sha256(json.dumps([keys, [float(each) for each in weights]]).encode()).hexdigest()[:32]


def pairs_fingerprint(dataset: Dataset) -> str:
    """A hash of preference pairs in order, including their weights."""
    names = [name for name in ("prompt", "chosen", "rejected", "weight", "confidence") if name in dataset.column_names]
    said = json.dumps([names, *(list(dataset[name]) for name in names)])
    return hashlib.sha256(said.encode()).hexdigest()[:32]


def distinct(prompts: Iterable[Any]) -> list[Any]:
    """Each prompt once, in order of first appearance."""
    return list({prompt_key(prompt): prompt for prompt in prompts}.values())


def prompt_key(prompt: Any) -> str:
    """A prompt as one string: itself, or the roles and contents of its messages."""
    if isinstance(prompt, str):
        return prompt
    return json.dumps([[message["role"], message["content"]] for message in prompt], ensure_ascii=False)


def _dataset(rows: Rows) -> Dataset:
    from datasets import Dataset

    if isinstance(rows.rows, Dataset):
        return rows.rows
    columns = {name: [row.get(name) for row in rows.rows] for name in rows.columns}
    try:
        return Dataset.from_dict(columns)
    except Exception:  # pyarrow cannot hold one of the columns: find it and say so
        for name, values in columns.items():
            try:
                Dataset.from_dict({name: values})
            except Exception as error:
                raise FrugalignError(f"{rows.file}: the column `{name}` mixes types ({error}).") from error
        raise


def _join(name: str, parts: Sequence[Dataset]) -> Dataset:
    if len(parts) == 1:
        return parts[0]
    try:
        from datasets import concatenate_datasets

        return concatenate_datasets(list(parts))
    except Exception as error:
        raise FrugalignError(f"The files of {name} do not fit together: {' '.join(str(error).split())}.") from error
