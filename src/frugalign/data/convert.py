"""Rewrite a data set in a published format as JSON lines of TRL's types (`frugalign convert`)."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

from frugalign.base.errors import FrugalignError
from frugalign.base.files import writing
from frugalign.data.columns import not_storable
from frugalign.data.formats import (
    MARKED_TEXTS,
    NUMBERED_LABELS,
    OPEN_ASSISTANT,
    Format,
    Uncarried,
    messages_of,
    recognise,
    zero_or_one,
)
from frugalign.data.read_files import read_splits
from frugalign.data.rows import Batch, Source, printable
from frugalign.data.standard import ANSWERS, KINDS, Misfit, Row, as_messages, detect_kind, read_boolean, standard_row
from frugalign.data.turns import text_turns
from frugalign.data.weights import WEIGHTS


@dataclass
class Conversion:
    """What became of one split.

    Attributes:
        n_read: rows that were read.
        n_written: rows that were written.
        left_out: why rows were left out, with the number of them.
        dropped_columns: columns that are not written.
    """

    split: str
    format: str
    kind: str
    says: str
    n_read: int = 0
    n_written: int = 0
    left_out: Counter[str] = field(default_factory=Counter)
    dropped_columns: list[str] = field(default_factory=list)


def convert(name: str, out: str, *, prefer: str | None = None) -> tuple[list[Conversion], list[Path]]:
    """Rewrite every split of a data set. A data set of one split becomes the file `out`, others a folder of that name.

    Args:
        name: as `read_splits` takes it.
        out: a path that does not exist yet; `.jsonl` for a single split.
        prefer: the column that says which answer is better, where a format has several.

    Returns:
        What was done, and the files that were written.

    Raises:
        FrugalignError: the data cannot be read or recognised, or `out` exists.
    """
    target = Path(out).expanduser()
    if "\0" in out:
        raise FrugalignError(f"{printable(out)} cannot be the name of a file.")
    with writing(target):
        if target.exists():
            raise FrugalignError(f"{printable(out)} exists already; nothing is written over.")
    splits = read_splits(name)
    single = len(splits) == 1
    if single is not (target.suffix.lower() == ".jsonl"):
        kind = "a file whose name ends in .jsonl" if single else f"a folder, as there are {', '.join(splits)}"
        raise FrugalignError(f"{printable(out)} must be {kind}.")
    with writing(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        staged = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}.", suffix=".tmp"))
        try:
            found = [_convert(split, files, staged / f"{split}.jsonl", prefer) for split, files in splits.items()]
            if single:
                (staged / f"{found[0].split}.jsonl").replace(target)
            else:
                staged.chmod(0o755)
                staged.replace(target)
        finally:
            shutil.rmtree(staged, ignore_errors=True)
    return found, [target] if single else [target / f"{each.split}.jsonl" for each in found]


def _convert(split: str, files: Sequence[Source], path: Path, prefer: str | None) -> Conversion:
    """Convert one split, and write it to `path`.

    The rows of one split are all text or all messages, so messages anywhere make messages of the text.
    """
    batches = chain.from_iterable(source.read() for source in files)
    first = next((batch for batch in batches if len(batch.numbers) or batch.problems), None)
    if first is None or not len(first.numbers):
        reason = f": {first.problems[0]}" if first is not None and first.problems else ""
        raise FrugalignError(f"The split {split} has no rows that can be read{reason}.")
    form = _format_of(first)
    preference = _preference(form, prefer)
    done = Conversion(split, form.name, form.kind, form.says.replace("{prefer}", preference or ""))
    others = [each for each in form.preferences if each != preference and each in first.columns]
    if others:
        done.says += f" (--prefer {' or '.join(others)} follows the other)"
    columns: dict[str, bool] = {}
    types: set[type] = set()
    written: set[str] = set()
    with path.open("w", encoding="utf-8") as stream:
        for row in _standard_rows(chain([first], batches), form, preference, done, columns):
            types.add(type(row["prompt"]))
            written.update(row)
            stream.write(json.dumps(row, ensure_ascii=False) + "\n")
            done.n_written += 1
    if len(types) > 1:
        _make_messages(path, form.kind)
    if not done.n_written:
        why = "; ".join(f"{reason} ({n:,})" for reason, n in done.left_out.most_common(3))
        raise FrugalignError(f"No row of the split {split} can be converted: {why}.")
    done.dropped_columns = [name for name, used in columns.items() if not used and name not in written]
    return done


def _format_of(batch: Batch) -> Format:
    """The format of a split, by its columns and first rows.

    Raises:
        FrugalignError: it is unknown.
    """
    columns = batch.columns
    found = recognise(columns)
    if found is not None:
        return found
    records = batch.records(["prompt", "chosen", "rejected", "completion", "label"])
    kind = detect_kind(columns, records)
    if kind == "prompt-completion" and any(zero_or_one(row.get("label")) is not None for row in records):
        return NUMBERED_LABELS
    if kind == "preference" and "prompt" not in columns and 2 * sum(map(_is_marked, records)) > len(records):
        return MARKED_TEXTS
    if not set(KINDS[kind]) <= set(columns):
        has = printable(", ".join(columns[:12]))
        raise FrugalignError(f"The format is not recognised by its columns (there are: {has}); rename them to TRL's.")
    return Format(f"TRL's {kind} type", frozenset(), kind, partial(_as_it_is, kind=kind))


def _is_marked(row: Mapping[str, Any]) -> bool:
    return isinstance(row.get("chosen"), str) and text_turns(row["chosen"]) is not None


def _as_it_is(row: Mapping[str, Any], _: str | None, *, kind: str) -> Iterator[Row]:
    names = [name for name in dict.fromkeys(("prompt", *KINDS[kind], "system")) if name in row]
    yield {name: _read(row[name]) if name != "label" else read_boolean(row[name]) for name in names}


def _read(value: Any) -> Any:
    """Messages in any spelling as messages; text as it is, unless it spells out a list of messages."""
    if isinstance(value, str) and not value.lstrip().startswith("[{"):
        return value
    if isinstance(value, (str, list, dict)):
        try:
            return messages_of(value)
        except Uncarried:
            if isinstance(value, list) and all("role" in message for message in value):
                return value  # in its final spelling
            raise
        except Misfit:
            return value
    return value


def _preference(form: Format, prefer: str | None) -> str | None:
    if prefer is not None and prefer not in form.preferences:
        known = f"it has {' and '.join(form.preferences)}" if form.preferences else "it has one preference"
        raise FrugalignError(f"--prefer {prefer!r} is not a preference of {form.name}; {known}.")
    return prefer or (form.preferences[0] if form.preferences else None)


def _standard_rows(
    batches: Iterator[Batch], form: Format, prefer: str | None, done: Conversion, columns: dict[str, bool]
) -> Iterator[Row]:
    """The rows to write. What is left out is counted in `done`; `columns` notes which columns are used."""
    for batch in _trees(batches, done) if form.name == OPEN_ASSISTANT else batches:
        if form.name != OPEN_ASSISTANT:
            done.n_read += len(batch.numbers) + len(batch.problems)
            columns |= dict.fromkeys(batch.columns, False) | columns
        done.left_out.update(problem.reason for problem in batch.problems)
        for row in batch.records(batch.columns):
            n_found = 0
            try:
                for found in form.rows(_Noted(row, columns), prefer):
                    n_found += 1
                    yield _checked(found, row, form.kind)
            except Misfit as misfit:
                done.left_out[str(misfit)] += 1
            except (KeyError, TypeError, AttributeError, IndexError):
                done.left_out["the row is not built as the format says"] += 1
            else:
                if not n_found:
                    done.left_out["there is no message with two ranked replies"] += 1


class _Noted(dict[str, Any]):
    """A row that notes which of its columns are used."""

    def __init__(self, row: Mapping[str, Any], columns: dict[str, bool]) -> None:
        super().__init__(row)
        self._columns = columns

    def __getitem__(self, name: str) -> Any:
        if name in self._columns:
            self._columns[name] = True
        return super().__getitem__(name)

    def get(self, name: str, default: Any = None) -> Any:
        try:
            return self[name]
        except KeyError:
            return default


def _checked(found: Row, raw: Mapping[str, Any], kind: str) -> Row:
    row = standard_row(found, kind, has_prompt="prompt" in found)
    row = {"prompt": row["prompt"], **row}
    if kind == "preference" and row["chosen"] == row["rejected"]:
        raise Misfit("both answers are equal")
    # A missing number is NaN in a table.
    kept = {name: raw[name] for name in WEIGHTS if type(raw.get(name)) in (int, float) and raw[name] == raw[name]}
    if "label" not in KINDS[kind] and isinstance(raw.get("label"), str):
        kept["label"] = raw["label"]  # safe or unsafe, by which `evaluate` counts refusals
    row |= kept
    if (reason := next(filter(None, (not_storable(name, value) for name, value in row.items())), None)) is not None:
        raise Misfit(reason)
    try:
        json.dumps(row, allow_nan=False)
    except ValueError as error:
        raise Misfit("the row holds a number that is not finite") from error
    return row


def _make_messages(path: Path, kind: str) -> None:
    """Rewrite a file's rows of text as messages."""
    texts = path.rename(path.with_suffix(".text"))
    with texts.open(encoding="utf-8", newline="\n") as rows, path.open("w", encoding="utf-8") as stream:
        for line in rows:
            row = json.loads(line)
            row["prompt"] = as_messages(row["prompt"], "user")
            row |= {name: as_messages(row[name], "assistant") for name in ANSWERS.get(kind, ())}
            stream.write(json.dumps(row, ensure_ascii=False) + "\n")
    texts.unlink()


def _trees(batches: Iterator[Batch], done: Conversion) -> Iterator[Batch]:
    """OpenAssistant's messages as trees, one row each."""
    nodes: dict[str, dict[str, Any]] = {}
    for batch in batches:
        done.n_read += len(batch.numbers)
        done.left_out.update(problem.reason for problem in batch.problems)
        for row in batch.records(batch.columns):
            nodes[str(row.get("message_id"))] = {**row, "replies": []}
    roots = []
    for node in nodes.values():
        parent = node.get("parent_id")
        if parent is None:
            roots.append({"prompt": node})
        elif str(parent) in nodes:
            nodes[str(parent)]["replies"].append(node)
        else:
            done.left_out["the message that this one answers is missing"] += 1
    yield Batch(range(1, len(roots) + 1), roots)
