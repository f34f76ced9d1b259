"""Read, check and standardise files. `frugalign validate` and every training read data through this one path."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import pyarrow as pa

from frugalign.base.files import replacing
from frugalign.data.columns import Columns
from frugalign.data.formats import conversion_hint
from frugalign.data.on_disk import Spill, cache_folder, join, key_of, mapped, store_table
from frugalign.data.read_files import read_splits
from frugalign.data.repeated_prompts import RepeatedPrompts, without_prompt
from frugalign.data.rows import Batch, Problem, Source, json_type
from frugalign.data.standard import (
    ANSWERS,
    KINDS,
    UNREAD,
    EmptyAnswer,
    Misfit,
    NoSharedPrompt,
    Row,
    as_messages,
    detect_kind,
    read_boolean,
    standard_row,
    wanted_columns,
)


@dataclass
class LoadedFile:
    """One file's rows as a table, if it has no problems.

    `n_rows` counts the broken rows too. `warnings`: what was read otherwise than one might think. `first_columns`: those of its first rows. `stored`: the file that a large table is
    mapped from.
    """

    file: str
    kind: str
    n_rows: int = 0
    problems: list[Problem] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    table: pa.Table | None = None
    columns: list[str] = field(default_factory=list)
    first_columns: list[str] = field(default_factory=list)
    stored: Path | None = None


def load_files(name: str, kind: str | None = None) -> dict[str, list[LoadedFile]]:
    """Every split of a data set as its files, checked and standardised.

    Args:
        name: as `read_splits` takes it.
        kind: the dataset type; default: detected from each file's first rows.

    Raises:
        FrugalignError: nothing exists under this name. All else is in the files' problems.
    """
    sources = read_splits(name)
    key = _key(sources, kind)
    if key is not None and (known := _stored(key)) is not None:
        return known
    spill = Spill()
    readers = {split: [_Reader(source, kind, spill) for source in files] for split, files in sources.items()}
    every = [reader for files in readers.values() for reader in files]
    for reader in every:
        reader.read()
    if any(reader.made_messages for reader in every):
        for reader in every:
            reader.write_messages()
    whole = {name for reader in every for name in reader.whole_texts()}
    found = {split: [reader.finish(whole) for reader in files] for split, files in readers.items()}
    for files in found.values():
        _check_join(files)
    if key is not None and spill.is_large and not any(each.problems for each in all_files(found)):
        # Files whose kind was found are what they are where that kind is asked for, so `validate` prepares a training.
        kinds = {each.kind for each in all_files(found)}
        _store(found, key, {key, *(str(_key(sources, each)) for each in kinds if len(kinds) == 1)})
    return found


def _key(sources: Mapping[str, Sequence[Source]], kind: str | None) -> str | None:
    """The key of files in their present state, read as this kind; None where their state is unknown."""
    states = [[split, source.file, source.state] for split, files in sources.items() for source in files]
    return None if any(None in state for state in states) else key_of("rows", kind, states)


def _store(splits: Mapping[str, Sequence[LoadedFile]], key: str, keys: Collection[str]) -> None:
    """Keep checked files in the cache: their tables under `key`, from where they are mapped, and what is known of them under all `keys`."""
    about: list[dict[str, Any]] = []
    for split, files in splits.items():
        for each in files:
            each.stored = cache_folder() / f"{key}-{len(about):05d}.arrow"
            assert each.table is not None
            store_table(each.table, each.stored)
            each.table = mapped(each.stored)
            names = ("file", "kind", "n_rows", "warnings", "columns", "first_columns")
            about.append({"split": split, "stored": each.stored.name} | {name: getattr(each, name) for name in names})
    for each_key in keys:
        with replacing(cache_folder() / f"{each_key}.json") as file:
            file.write(json.dumps(about).encode())


def _stored(key: str) -> dict[str, list[LoadedFile]] | None:
    """The files that `_store` kept under this key, if all of them are there."""
    try:
        about = json.loads((cache_folder() / f"{key}.json").read_bytes())
        found: dict[str, list[LoadedFile]] = {}
        for each in about:
            split, path = each.pop("split"), cache_folder() / each.pop("stored")
            found.setdefault(split, []).append(LoadedFile(**each, table=mapped(path), stored=path))
    except (OSError, ValueError, KeyError, TypeError, pa.ArrowException):  # not stored, or partly deleted
        return None
    return found


def columns_of(name: str) -> set[str]:
    """The columns of a data set, from the first rows of every file."""
    sources = read_splits(name)
    for kind in (None, *KINDS):
        if (key := _key(sources, kind)) is not None and (known := _stored(key)) is not None:
            return {column for each in all_files(known) for column in each.first_columns}
    batches = [next(iter(source.read()), None) for files in sources.values() for source in files]
    return {column for batch in batches if batch is not None for column in batch.columns}


def _check_join(files: Sequence[LoadedFile]) -> None:
    """Name the files whose columns do not fit those of the first."""
    readable = [each for each in files if each.table is not None]
    for each in readable[1:]:
        assert readable[0].table is not None and each.table is not None
        try:
            join([readable[0].table, each.table])
        except pa.ArrowException:
            names = [name for name in each.table.column_names if name in readable[0].table.column_names]
            bad = [name for name in names if _differ(readable[0].table, each.table, name)]
            which = " and ".join(f"`{name}`" for name in bad)
            each.problems.append(
                Problem(each.file, None, f"{which} has another type than in {readable[0].file}, its first part")
            )


def _differ(one: pa.Table, other: pa.Table, name: str) -> bool:
    try:
        join([one.select([name]), other.select([name])])
    except pa.ArrowException:
        return True
    return False


def _kind_of(batch: Batch) -> str:
    columns = [name for name in ("label", "completions") if name in batch.columns]
    return detect_kind(batch.columns, batch.records(columns) if columns else [])


_TEXTS = ("prompt", "completion", "chosen", "rejected")
"""The columns that are text or messages."""


class _Reader:
    """Reads one file, batch by batch."""

    def __init__(self, source: Source, kind: str | None, spill: Spill) -> None:
        self.source, self.kind = source, kind
        self.columns = Columns(source.file, spill)
        self.problems: list[Problem] = []
        self.made_messages = False
        self._broken_rows = self._lost = 0
        self._names: list[str] = []
        self._first_names: list[str] = []
        self._first_types: dict[str, tuple[type, int]] = {}
        self._no_prompt_said = False
        self._repeated: RepeatedPrompts | None = None

    def read(self) -> None:
        """Read, check and standardise every row."""
        for number, batch in enumerate(self.source.read()):
            if number == 0:
                self._first_names = list(batch.columns)
            self.problems.extend(batch.problems)
            self._broken_rows += sum(problem.row is not None for problem in batch.problems)
            if not len(batch.numbers):
                continue
            self.kind = self.kind or _kind_of(batch)
            self._names.extend(name for name in batch.columns if name not in self._names)
            if not self._names or self._lacks_columns():
                self._lost += len(batch.numbers)
                continue
            self._take(batch)

    def _lacks_columns(self) -> bool:
        assert self.kind is not None
        return not {*KINDS[self.kind]} & {*self._names}

    def _take(self, batch: Batch) -> None:
        """Standardise a batch and append it to the table."""
        assert self.kind is not None
        kind = self.kind
        wanted = wanted_columns(kind)
        has_prompt = "prompt" in self._names
        rows: list[Row] = []
        for number, row in zip(batch.numbers, batch.records(wanted), strict=True):
            if self.source.untyped and kind == "unpaired-preference":
                row = {**row, "label": read_boolean(row.get("label"))}
            try:
                self._same_types(row, wanted, number)
                found = standard_row(row, kind, has_prompt=has_prompt)
            except Misfit as misfit:
                self.problems.append(Problem(self.source.file, number, self._explain(misfit, number)))
                found = {}
            else:
                self._notice(row, found, number)
            rows.append(found)
        standard = [name for name in wanted if name != "system"]
        columns: dict[str, Any] = {name: [row.get(name) for row in rows] for name in standard if _any(rows, name)}
        if self.made_messages:
            self.write_messages()
            for name in columns.keys() & {*_TEXTS}:
                columns[name] = [as_messages(value, _role(name)) for value in columns[name]]
        for name in batch.columns:
            if name not in wanted:
                columns[name] = batch.column(name)
        self.columns.add(columns, batch.numbers)

    def _same_types(self, row: Mapping[str, Any], wanted: Sequence[str], number: int) -> None:
        """Check that a column is text in every row, or a list of messages in every row."""
        for name in wanted:
            value = row.get(name)
            if not isinstance(value, (str, list)):
                continue
            kind, first = self._first_types.setdefault(name, (type(value), number))
            if not isinstance(value, kind):
                raise Misfit(f"`{name}` is {json_type(value)}, but row {first} has {json_type(kind())}")

    def _notice(self, raw: Mapping[str, Any], found: Row, number: int) -> None:
        """Note what concerns the whole file: text that became messages, answers that repeat their prompt."""
        if not isinstance(found["prompt"], str):
            self.made_messages = self.made_messages or isinstance(raw.get("prompt"), str)
        if self.kind in ANSWERS and "prompt" in self._names:
            self._repeated = self._repeated or RepeatedPrompts(ANSWERS[self.kind])
            self._repeated.note(found, number)

    def _explain(self, misfit: Misfit, number: int) -> str:
        if isinstance(misfit, EmptyAnswer):
            return f"{misfit} (`frugalign convert` leaves such rows out)"
        if not isinstance(misfit, NoSharedPrompt):
            return str(misfit)
        reason = f"there is no column `prompt`, and {misfit} in row {number}"
        if self._no_prompt_said:
            return reason
        self._no_prompt_said = True
        return f"{reason} (there are: {', '.join(self._names[:12])}){self._hint()}"

    def _hint(self) -> str:
        found = conversion_hint(self._names, self.source.file)
        if not found and "prompt" not in self._names and self.kind == "prompt-only" and "chosen" in self._names:
            found = "; `frugalign convert` writes the prompt that chosen and rejected begin with"
        return found

    def write_messages(self) -> None:
        """Turn text into messages, as another file or row of the data set has a system prompt."""
        for name in _TEXTS:
            if self.columns.has_text(name) and name in wanted_columns(self.kind or "prompt-only"):
                self.columns.replace(name, partial(as_messages, role=_role(name)))

    def whole_texts(self, elsewhere: Collection[str] = ()) -> list[str]:
        """The columns whose answers hold their prompts. `elsewhere`: those of the other files."""
        return self._repeated.whole(elsewhere) if self._repeated is not None else []

    def finish(self, whole_texts: Collection[str] = ()) -> LoadedFile:
        """The table of a file without problems, else its problems in the order of its rows.

        `whole_texts`: columns that hold their prompts in this file or another one.
        """
        kind = self.kind or "prompt-only"
        found = LoadedFile(self.source.file, kind, self.columns.n_rows + self._broken_rows + self._lost)
        found.columns, found.first_columns = self._names, self._first_names
        found.problems = [*self.problems, *self.columns.problems]
        if not self._names and not found.problems:
            found.problems.append(Problem(self.source.file, None, "there are no rows"))
        elif self._names and (missing := self._missing(kind)):
            needs = " and ".join(f"`{name}`" for name in missing)
            reason = f"there is no column {needs} (there are: {', '.join(self._names[:12])}){self._hint()}"
            found.problems = [each for each in found.problems if not _says_missing(each, missing)]
            found.problems.append(Problem(self.source.file, None, reason))
        if not found.problems:
            self._leave_out_repeated(found, self.whole_texts(whole_texts))
        if not found.problems:
            found.table = self._table(kind)
            found.problems = list(self.columns.problems)
        found.problems.sort(key=lambda problem: problem.row or 0)
        if found.problems:
            first = found.problems[0]
            if not any("frugalign convert" in problem.reason for problem in found.problems):
                found.problems[0] = replace(first, reason=first.reason + self._hint())
        else:
            found.warnings += self._unread(kind)
        return found

    def _missing(self, kind: str) -> list[str]:
        return [name for name in KINDS[kind] if name not in self._names]

    def _table(self, kind: str) -> pa.Table:
        if self.source.untyped:
            self.columns.read_numbers([name for name in self._names if name not in wanted_columns(kind)])
        return self.columns.table()

    def _leave_out_repeated(self, found: LoadedFile, names: Sequence[str]) -> None:
        """Leave the prompts out of the answers in these columns. Name the columns that may hold them."""
        if self._repeated is not None:
            found.problems += self._repeated.problems(found.file, names)
            found.warnings += self._repeated.warnings(found.file, names)
        for name in names:
            self.columns.combine(name, "prompt", without_prompt)

    def _unread(self, kind: str) -> list[str]:
        """Warnings of columns that change what a row means and that are not read."""
        names = [name for name in UNREAD if name in self._names and name not in wanted_columns(kind)]
        said, more = ", ".join(f"`{name}`" for name in names), self._hint()
        if not names:
            return [f"{self.source.file}: only the prompts are read{more}."] if more else []
        return [f"{self.source.file}: {said} {'is' if len(names) == 1 else 'are'} not read{more}."]


def _any(rows: Sequence[Row], name: str) -> bool:
    return any(name in row for row in rows)


def _role(name: str) -> str:
    return "user" if name == "prompt" else "assistant"


def _says_missing(problem: Problem, names: Sequence[str]) -> bool:
    return any(problem.reason == f"`{name}` is missing" for name in names)


def all_files(splits: Mapping[str, Sequence[LoadedFile]]) -> list[LoadedFile]:
    """The files of all splits."""
    return list(chain.from_iterable(splits.values()))
