"""Splits of a data set by name and by content: which rows are trained on, which are held out, and how both are recognised."""

from __future__ import annotations

import hashlib
import json
import logging
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from frugalign.base.errors import FrugalignError
from frugalign.data.read_files import rest_of, role_of
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


def prompts_to_hold_out(prompts: Sequence[Any], fraction: float, seed: int) -> list[bool]:
    """Which prompts are held out: a share of the distinct contents, drawn by hash. Equal contents stay together, and the
    choice does not depend on the order.

    Raises:
        FrugalignError: there are fewer than two distinct contents, or the share is not in (0, 1).
    """
    contents = [content_key(prompt) for prompt in prompts]
    # The hash is of the prompt as it is written, the first in the alphabet if there are several.
    written: dict[str, str] = {}
    for content, prompt in zip(contents, prompts, strict=True):
        key = prompt_key(prompt)
        written[content] = min(key, written.get(content, key))
    if len(written) < 2 or not 0 < fraction < 1:
        raise FrugalignError(
            "The data set has fewer than two distinct prompts, so none can be held out."
            if len(written) < 2
            else f"The share of prompts to hold out is {fraction}; it must lie between 0 and 1."
        )
    ranked = sorted(written, key=lambda each: hashlib.sha256(f"{seed}:{written[each]}".encode()).digest())
    chosen = set(ranked[: min(len(ranked) - 1, max(1, round(fraction * len(ranked))))])
    return [content in chosen for content in contents]


def held_out_split(dataset: Dataset, fraction: float = HELD_OUT_FRACTION, seed: int = 0) -> tuple[Dataset, Dataset]:
    """Rows to train on and rows held out, as `prompts_to_hold_out` chooses them.

    Raises:
        FrugalignError: there are fewer than two distinct prompts.
    """
    held = prompts_to_hold_out(column(dataset, "prompt"), fraction, seed)
    rows = range(len(held))
    return dataset.select([row for row in rows if not held[row]]), dataset.select([row for row in rows if held[row]])


def count_shared(prompts: Iterable[Any], trained: Iterable[Any]) -> tuple[int, int]:
    """How many of these distinct prompts are among those trained on, by content, and how many there are."""
    tested = {content_key(prompt) for prompt in prompts}
    return len(tested & {content_key(prompt) for prompt in trained}), len(tested)


def warn_of_shared(name: str, prompts: Iterable[Any], trained: Iterable[Any], what: str = "test") -> None:
    """Say how many test prompts are also trained on, if any."""
    shared, total = count_shared(prompts, trained)
    if shared:
        _log.warning("%s of %s %s prompts of %s are also trained on.", f"{shared:,}", f"{total:,}", what, name)


def warn_of_shared_splits(name: str, splits: Mapping[str, Dataset], trained: str) -> None:
    """Say how many prompts of the validation and the test split are also trained on."""
    for role in ("validation", "test"):
        if (split := split_for(splits, role, trained)) is not None:
            warn_of_shared(name, column(splits[split], "prompt"), column(splits[trained], "prompt"), role)


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
    digest = hashlib.sha256()
    for key in sorted(map(prompt_key, column(dataset, "prompt"))):
        digest.update(hashlib.sha256(key.encode()).digest())
    return digest.hexdigest()[:32]


def rows_fingerprint(dataset: Dataset) -> str:
    """A hash of the prompts in order with their other columns, which rewards read. Equal hashes mean that row numbers
    agree."""
    digest = hashlib.sha256(json.dumps(list(map(prompt_key, column(dataset, "prompt")))).encode())
    for name in sorted(set(dataset.column_names) - {"prompt"}):
        values = column(dataset, name)
        if name == "weight":
            values = [float(each) if type(each) is int else each for each in values]
        digest.update(json.dumps([name, values], sort_keys=True, default=repr).encode())
    return digest.hexdigest()[:32]


def pairs_fingerprint(dataset: Dataset) -> str:
    """A hash of preference pairs in order, including their weights."""
    names = [name for name in ("prompt", "chosen", "rejected", *WEIGHTS) if name in dataset.column_names]
    said = json.dumps([names, *(column(dataset, name) for name in names)])
    return hashlib.sha256(said.encode()).hexdigest()[:32]
