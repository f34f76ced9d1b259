"""Check every row against TRL's dataset types, and report all problems in one pass."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from frugalign.base.errors import FrugalignError
from frugalign.data.read_files import Problem, Rows, json_type, read_splits

KINDS: dict[str, tuple[str, ...]] = {
    "prompt-only": ("prompt",),
    "prompt-completion": ("prompt", "completion"),
    "preference": ("chosen", "rejected"),
    "unpaired-preference": ("prompt", "completion", "label"),
}
"""TRL's types and the columns they need. A preference set may hold its prompt in a separate column or within both
answers."""


@dataclass(frozen=True)
class ValidationReport:
    """What `validate_files` found. `kinds`: the dataset type of each file."""

    n_rows: int
    problems: list[Problem]
    kinds: dict[str, str]

    def __bool__(self) -> bool:
        """Whether every row can be used."""
        return not self.problems


def validate_files(name: str, kind: str | None = None) -> ValidationReport:
    """Check every row of every split of a data set.

    Args:
        name: as `load_prompts` takes it.
        kind: `prompt-only`, `prompt-completion`, `preference` or `unpaired-preference`; default: detected from each
            file's columns.

    Raises:
        FrugalignError: the data or the kind does not exist.
    """
    kind = "unpaired-preference" if kind == "unpaired" else kind
    if kind is not None and kind not in KINDS:
        raise FrugalignError(f"{kind!r} is not a dataset type; choose from {', '.join(KINDS)}.")
    files = [rows for split in read_splits(name).values() for rows in split]
    kinds = {rows.file: kind or detect_kind(rows) for rows in files}
    problems = [problem for rows in files for problem in check_rows(rows, kinds[rows.file])]
    broken = sum(len({p.row for p in rows.problems if p.row is not None}) for rows in files)
    return ValidationReport(sum(len(rows.rows) for rows in files) + broken, problems, kinds)


def detect_kind(rows: Rows) -> str:
    """The richest type whose columns the file has. Completions with a `label` are unpaired preferences only if it is
    true or false."""
    columns = set(rows.columns)
    if {"chosen", "rejected"} & columns:
        return "preference"
    if "completion" not in columns:
        return "prompt-only"
    labelled = "label" in columns and any(
        isinstance(row["label"], bool) for _, row in rows.items(["label"]) if "label" in row
    )
    return "unpaired-preference" if labelled else "prompt-completion"


def check_rows(rows: Rows, kind: str = "prompt-only") -> list[Problem]:
    """All problems of one file, in the order of its rows."""
    columns = rows.columns
    wanted = list(KINDS[kind])
    if kind == "preference" and "prompt" in columns:
        wanted.append("prompt")
    missing = [name for name in wanted if name not in columns]
    if not columns and not rows.problems:
        return [Problem(rows.file, None, "there are no rows")]
    if missing and columns:
        has = ", ".join(columns[:12])
        needs = " and ".join(f"`{name}`" for name in missing)
        return [*rows.problems, Problem(rows.file, None, f"there is no column {needs} (there are: {has})")]
    problems = list(rows.problems)
    first: dict[str, tuple[type, int]] = {}
    for number, row in rows.items(wanted):
        reason = next((found for name in wanted if (found := _reason(name, row)) is not None), None)
        if reason is None and not rows.is_table:  # an Arrow table holds one type per column
            reason = next(
                (found for name in row if (found := _other_type(name, row[name], number, first)) is not None), None
            )
        if reason is not None:
            problems.append(Problem(rows.file, number, reason))
    return sorted(problems, key=lambda problem: problem.row or 0)


def raise_first_problem(problems: Sequence[Problem], name: str) -> None:
    """Raise for the first problem and say how many more there are. Do nothing without problems."""
    if not problems:
        return
    more = len(problems) - 1
    rest = f" and {more} more problem{'s' if more > 1 else ''}" if more else ""
    raise FrugalignError(f"{problems[0]}{rest} (`frugalign validate {name}` lists {'all' if more else 'it'}).")


def _reason(name: str, row: Mapping[str, Any]) -> str | None:
    value = row.get(name)
    if value is None:
        return f"`{name}` is missing"
    if name == "label":
        return None if isinstance(value, bool) else f"`label` is {json_type(value)}, not true or false"
    if isinstance(value, str):
        return None if value.strip() else f"`{name}` is empty"
    if isinstance(value, float) and math.isnan(value):
        return f"`{name}` is NaN"
    if isinstance(value, list):
        return _message_reason(name, value)
    return f"`{name}` is {json_type(value)}, not text or a list of messages"


def _message_reason(name: str, messages: list[Any]) -> str | None:
    if not messages:
        return f"`{name}` is empty"
    for place, message in enumerate(messages, start=1):
        which = f"message {place} of `{name}`"
        if not isinstance(message, dict):
            return f"{which} is {json_type(message)}, not an object with role and content"
        for key in ("role", "content"):
            if not isinstance(message.get(key), str):
                return (
                    f"{which} has no {key}"
                    if message.get(key) is None
                    else f"{which} has {json_type(message[key])} as its {key}, not text"
                )
        if not message["role"].strip():
            return f"{which} has an empty role"
    if not messages[-1]["content"].strip():
        return f"`{name}` is empty (its last message has no content)"
    return None


def _other_type(name: str, value: Any, number: int, first: dict[str, tuple[type, int]]) -> str | None:
    if value is None:
        return None
    kind = float if type(value) is int else type(value)
    seen, where = first.setdefault(name, (kind, number))
    return None if seen is kind else f"`{name}` is {json_type(value)}, but row {where} has {json_type(seen())}"
