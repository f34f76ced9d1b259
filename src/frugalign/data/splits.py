"""Splits of a data set by name and by content: which rows are trained on, which are held out, and how both are recognised."""

from __future__ import annotations

import hashlib
import json
import logging
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from frugalign.base.errors import FrugalignError
from frugalign.data.on_disk import ROWS, Spill, join
from frugalign.data.read_files import rest_of, role_of
from frugalign.data.row_parts import Numbers, choose, each, kept_of, kept_text, numbers_of, parts
from frugalign.data.weights import WEIGHTS

if TYPE_CHECKING:
    from datasets import Dataset

HELD_OUT_FRACTION = 0.1
"""The share of prompts held out if a data set has no test split."""
Part = TypeVar("Part")
_log = logging.getLogger(__name__)


def split_for(splits: Mapping[str, Any], role: str, like: str = "") -> str | None:
    """The name of the split for `train`, `validation` or `test`; None if there is none.

    The exact name comes first, then the one that says the same as `like` beside its role (`test_prefs` for
    `train_prefs`), then a split of preferences, then the first. A split whose name has no role is trained on if no other is.
    """
    named = [name for name in splits if role_of(name) == role]
    if role == "train":
        named = named or [name for name in splits if role_of(name) is None]
    rest = rest_of(like)
    tests = (lambda name: name.lower() == role, lambda name: rest and rest_of(name) == rest, lambda n: "pref" in n)
    for test in tests:
        if (found := next((name for name in named if test(name)), None)) is not None:
            return found
    return named[0] if named else None


def training_name(splits: Mapping[str, Any], name: str) -> str:
    """The split to train on. Other training splits are named in a warning.

    Raises:
        FrugalignError: every split is a test or validation split.
    """
    found = split_for(splits, "train")
    if found is None:
        kinds = " and ".join(sorted({str(role_of(split)) for split in splits}))
        raise FrugalignError(f"{name} holds a {kinds} split only, and training on that is refused.")
    if others := [split for split in splits if split != found and role_of(split) in (None, "train")]:
        _log.warning("Training on the split %s of %s, and not on %s.", found, name, ", ".join(others))
    return found


def prompt_key(prompt: Any) -> str:
    """A prompt as one string: its text, or the roles and contents of its messages. A single message of the user is the
    same as its text."""
    if isinstance(prompt, str):
        return prompt
    if len(prompt) == 1 and prompt[0]["role"] == "user":
        return str(prompt[0]["content"])
    return json.dumps([[message["role"], message["content"]] for message in prompt], ensure_ascii=False)


def content_key(prompt: Any) -> str:
    """A prompt's content: equal for prompts that differ in case, white space or the form of their characters only."""
    text = prompt_key(prompt)
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text).casefold()
    return " ".join(text.lower().split())


def distinct(prompts: Iterable[Any]) -> list[Any]:
    """Each prompt once, in order of first appearance."""
    return list({prompt_key(prompt): prompt for prompt in prompts}.values())


def column(dataset: Dataset, name: str) -> list[Any]:
    """All values of a column at once. Iterating over a column of `datasets` decodes it row by row, which is slow."""
    values: list[Any] = dataset[name][:]
    return values


def prompts_to_hold_out(prompts: Sequence[Any], fraction: float, seed: int) -> Numbers:
    """Which prompts are held out, as booleans: a share of the distinct contents, drawn by hash. Equal contents stay together, and the
    choice does not depend on the order. A prompt takes 24 bytes.

    Raises:
        FrugalignError: there are fewer than two distinct contents, or the share is not in (0, 1).
    """
    contents = numbers_of(prompts, lambda prompt: _hash(content_key(prompt)), np.uint64)
    ranks = numbers_of(prompts, lambda prompt: _rank(prompt_key(prompt), seed), np.uint64)
    distinct, first, counts = np.unique(contents, return_index=True, return_counts=True)
    if len(distinct) < 2 or not 0 < fraction < 1:
        raise FrugalignError(
            "The data set has fewer than two distinct prompts, so none can be held out."
            if len(distinct) < 2
            else f"The share of prompts to hold out is {fraction}; it must lie between 0 and 1."
        )
    ranks = ranks[first]
    # The hash is of the prompt as it is written, the first in the alphabet if there are several.
    for content, key in _written(prompts, contents, distinct[counts > 1]).items():
        ranks[np.searchsorted(distinct, content)] = _rank(key, seed)
    number = min(len(distinct) - 1, max(1, round(fraction * len(distinct))))
    chosen = np.zeros(len(distinct), dtype=bool)
    chosen[np.argsort(ranks, kind="stable")[:number]] = True
    found: Numbers = chosen[np.searchsorted(distinct, contents)]
    return found


def _written(prompts: Sequence[Any], contents: Numbers, several: Numbers) -> dict[Any, str]:
    """The first form in the alphabet of each content in `several` (sorted), which more than one prompt has."""
    found: dict[Any, str] = {}
    if len(several):
        for content, prompt in zip(contents, each(prompts), strict=True):
            place = np.searchsorted(several, content)
            if place < len(several) and several[place] == content:
                key = prompt_key(prompt)
                found[content] = min(key, found.get(content, key))
    return found


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def _rank(key: str, seed: int) -> int:
    """The place of a prompt among those to hold out."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{key}".encode()).digest()[:8], "big")


def held_out_split(dataset: Dataset, fraction: float = HELD_OUT_FRACTION, seed: int = 0) -> tuple[Dataset, Dataset]:
    """Rows to train on and rows held out, as `prompts_to_hold_out` chooses them.

    Raises:
        FrugalignError: there are fewer than two distinct prompts.
    """
    held = kept_of(
        dataset, ["held out", fraction, seed], lambda: prompts_to_hold_out(dataset["prompt"], fraction, seed)
    )
    return choose(dataset, np.flatnonzero(~held)), choose(dataset, np.flatnonzero(held))


def count_shared(prompts: Iterable[Any], trained: Iterable[Any]) -> tuple[int, int]:
    """How many of these distinct prompts are among those trained on, by content, and how many there are."""
    tested = np.unique(numbers_of(prompts, lambda prompt: _hash(content_key(prompt)), np.uint64))
    shared = np.zeros(len(tested), dtype=bool)
    for part in parts(trained) if len(tested) else ():
        keys = np.array([_hash(content_key(prompt)) for prompt in part], dtype=np.uint64)
        places = np.searchsorted(tested, keys).clip(max=len(tested) - 1)
        shared[places[tested[places] == keys]] = True
    return int(shared.sum()), len(tested)


def warn_of_shared(name: str, prompts: Iterable[Any], trained: Iterable[Any], what: str = "test") -> None:
    """Say how many test prompts are also trained on, if any."""
    shared, total = count_shared(prompts, trained)
    if shared:
        _log.warning("%s of %s %s prompts of %s are also trained on.", f"{shared:,}", f"{total:,}", what, name)


def warn_of_shared_splits(name: str, splits: Mapping[str, Dataset], trained: str) -> None:
    """Say how many prompts of the validation and the test split are also trained on."""
    for role in ("validation", "test"):
        if (split := split_for(splits, role, trained)) is not None:
            warn_of_shared(name, splits[split]["prompt"], splits[trained]["prompt"], role)


def training_data_record(name: str | None, rows: Dataset, *, held_out_fraction: float) -> dict[str, Any]:
    """The record that an artefact stores about its data, held-out rows included. `load_prompts` recognises the data
    by it."""
    return {
        "name": name,
        "fingerprint": dataset_fingerprint(rows),
        "held_out_fraction": held_out_fraction,
        "seed": 0,
    }


def dataset_fingerprint(dataset: Dataset) -> str:
    """A hash of the prompts. Row order and other columns do not matter."""

    def found() -> str:
        digest, spill = hashlib.sha256(), Spill()
        # As bytes, text has the order that Python gives it.
        tables = [spill.keep(pa.table({"key": list(map(prompt_key, part))})) for part in parts(dataset["prompt"])]
        keys = join(tables or [pa.table({"key": pa.array([], pa.string())})]).column("key")
        order = pc.sort_indices(keys)
        for start in range(0, len(keys), ROWS):
            for key in keys.take(order[start : start + ROWS]).to_pylist():
                digest.update(hashlib.sha256(key.encode()).digest())
        return digest.hexdigest()[:32]

    return kept_text(dataset, "prompts", found)


def rows_fingerprint(dataset: Dataset) -> str:
    """A hash of the prompts in order with their other columns, which rewards read. Equal hashes mean that row numbers
    agree."""

    def found() -> str:
        digest = hashlib.sha256()
        for piece in _json_list(map(prompt_key, each(dataset["prompt"]))):
            digest.update(piece)
        for name in sorted(set(dataset.column_names) - {"prompt"}):
            values = each(dataset[name])
            if name == "weight":
                values = (float(value) if type(value) is int else value for value in values)
            digest.update(f"[{json.dumps(name)}, ".encode())
            for piece in _json_list(values, sort_keys=True):
                digest.update(piece)
            digest.update(b"]")
        return digest.hexdigest()[:32]

    return kept_text(dataset, "rows", found)


def pairs_fingerprint(dataset: Dataset) -> str:
    """A hash of preference pairs in order, including their weights."""

    def found() -> str:
        names = [name for name in ("prompt", "chosen", "rejected", *WEIGHTS) if name in dataset.column_names]
        digest = hashlib.sha256(f"[{json.dumps(names)}".encode())
        for name in names:
            digest.update(b", ")
            for piece in _json_list(each(dataset[name])):
                digest.update(piece)
        digest.update(b"]")
        return digest.hexdigest()[:32]

    return kept_text(dataset, "pairs", found)


def _json_list(values: Iterable[Any], *, sort_keys: bool = False) -> Iterator[bytes]:
    """The pieces of the list as JSON, as `json.dumps` writes it."""
    yield b"["
    for number, part in enumerate(parts(values)):
        yield (", " if number else "").encode() + json.dumps(part, sort_keys=sort_keys, default=repr)[1:-1].encode()
    yield b"]"
