"""Data sets with a checked `prompt` column, their splits, and how an artefact recognises the data it was trained on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from datasets import Dataset, concatenate_datasets

from frugalign.data.reading import Rows, read_splits
from frugalign.data.validation import check_rows, stop_at
from frugalign.errors import FrugalignError


def load_splits(name: str, *, kind: str = "prompt-only") -> dict[str, Dataset]:
    """Every split of a data set, each with a checked `prompt` column (strings, or lists of {role, content}) and all
    its other columns.

    Args:
        name: hub id; .jsonl, .json, .csv or .parquet file (also .gz); folder, where files named train*, test*,
            validation* are splits; or `package.module:attribute` that names one of these. A single file is the split
            `train`.
        kind: the dataset type whose columns are checked.

    Raises:
        FrugalignError: no such data, or a row that cannot be used: one sentence with file, row, reason and how many
            more.
    """
    splits = read_splits(name)
    stop_at([problem for files in splits.values() for rows in files for problem in check_rows(rows, kind)], name)
    return {split: _join(name, [_dataset(rows) for rows in files]) for split, files in splits.items()}


def load_prompts(name: str, *, split: str | None = None, trained_on: Mapping[str, Any] | None = None) -> Dataset:
    """The rows to work on.

    Args:
        name: as for `load_splits`.
        split: `train`, `test`, `all` or any split that the data set has. Default: `test` where there is one; the
            held-out rows where this is what an artefact was trained on; else all rows.
        trained_on: what the artefact stores, `{"name", "fingerprint", "held_out_fraction", "seed"}`. Where the
            fingerprint is that of this data, `test` means its held-out rows and `train` the others.

    Raises:
        FrugalignError: as `load_splits`, or where there is no such split.
    """
    splits = load_splits(name)
    main = splits.get("train", next(iter(splits.values())))
    parts = {"all": _join(name, list(splits.values()))} | splits
    if "test" not in splits and _is_trained_on(main, trained_on):
        assert trained_on is not None
        fraction, seed = float(trained_on["held_out_fraction"]), int(trained_on.get("seed", 0))
        parts["train"], parts["test"] = held_out_split(main, fraction, seed)
    if split is None:
        split = "test" if "test" in parts else "all"
    if split not in parts:
        raise FrugalignError(f"The data set {name} has no split {split!r}; it has {', '.join(splits)} (or all).")
    return parts[split]


def held_out_split(dataset: Dataset, fraction: float = 0.1, seed: int = 0) -> tuple[Dataset, Dataset]:
    """Rows to train on and rows held out: a share of the distinct prompts, drawn by hash.

    Equal prompts stay together, and the choice depends on the set of prompts and the seed, not on the order of the
    rows.

    Raises:
        FrugalignError: where there are fewer than two distinct prompts.
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
    """A hash of the prompts, whatever their order and the other columns."""
    digest = hashlib.sha256()
    for key in sorted(prompt_key(prompt) for prompt in dataset["prompt"]):
        digest.update(hashlib.sha256(key.encode()).digest())
    return digest.hexdigest()[:32]


def distinct(prompts: Iterable[Any]) -> list[Any]:
    """Each prompt once, in the order of their first places."""
    return list({prompt_key(prompt): prompt for prompt in prompts}.values())


def prompt_key(prompt: Any) -> str:
    """A prompt as one string: itself, or the roles and contents of its messages."""
    if isinstance(prompt, str):
        return prompt
    return json.dumps([[message["role"], message["content"]] for message in prompt], ensure_ascii=False)


def _is_trained_on(dataset: Dataset, trained_on: Mapping[str, Any] | None) -> bool:
    """Whether an artefact was trained on these prompts, some of them held out."""
    if not trained_on or not trained_on.get("held_out_fraction"):
        return False
    return dataset_fingerprint(dataset) == trained_on.get("fingerprint")


def _dataset(rows: Rows) -> Dataset:
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
        return concatenate_datasets(list(parts))
    except Exception as error:
        raise FrugalignError(f"The files of {name} do not fit together: {' '.join(str(error).split())}.") from error
