"""Data files as odd as people make them: mixed columns, roles, types and encodings, and what they must be read as."""

from __future__ import annotations

import csv
import io
import json
import math
import random
from collections.abc import Sequence
from typing import Any

from hypothesis import strategies as st
from tests.fuzz.mutations import REFUSED, outcome, room, written

_WORDS = [
    *(
        "What is 2 and 2?",
        "4",
        "Wie geht’s?",
        "日本",
        "a",
        "Hello",
        "Hello, you.",
        "x\r\ny",
        " padded ",
        "None",
        "nan",
        "007",
    ),
    *("👩‍🚀", "Human: a\n\nAssistant: b", "\n\nHuman: a\n\nAssistant: b", "\u2028", "e\u0301"),
]
_EMPTY = ["", " ", "\n\t", "\u3000"]
_ROLES = ["system", "tool", "developer", "User", "", "human", None, 3]
_ODD: list[Any] = [
    *(
        None,
        True,
        0,
        -1.5,
        2**63,
        10**40,
        math.nan,
        math.inf,
        [],
        {},
        [1, "a"],
        {"a": {"b": [None]}},
        ["x"],
        "\ud800",
        "a\0b",
    ),
]
_MORE = ["system", "question", "messages", "weight", "id", "Prompt", " prompt", "", "label", "completion", "notes"]
_SHAPES = {
    "prompt-only": ["prompt"],
    "prompt-completion": ["prompt", "completion"],
    "preference": ["prompt", "chosen", "rejected"],
    "implicit": ["chosen", "rejected"],
    "unpaired-preference": ["prompt", "completion", "label"],
    "groups": ["prompt", "completions"],
}
_ANSWERS = ("completion", "chosen", "rejected")


class _File:
    """Makes one file. `odd`: the share of things in it that are odd."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.odd = self.random.choice([0.0, 0.0, 0.01, 0.03, 0.1])

    def rarely(self, times: float = 1.0) -> bool:
        return self.random.random() < times * self.odd

    def text(self) -> str:
        if self.rarely():
            return self.random.choice(_EMPTY)
        some = self.random.sample(_WORDS, self.random.choice([1, 1, 2]))
        return " ".join([*some, str(self.random.randrange(99))])

    def message(self, role: Any) -> dict[str, Any]:
        if self.rarely():
            return {"from": "human", "value": "a"}
        message: dict[str, Any] = {
            "role": self.random.choice(_ROLES) if self.rarely() else role,
            "content": self.text(),
        }
        if self.rarely():
            message["content"] = self.random.choice(_ODD)
        if self.random.random() < 0.05:
            message |= self.random.choice([{"name": "x"}, {"tool_calls": [{"id": "1"}]}, {"weight": 1}])
        return message

    def messages(self, roles: Sequence[str]) -> list[dict[str, Any]]:
        """Turns, of which some have a system message within, or one side twice in a row."""
        found = [self.message(role) for role in roles]
        if self.random.random() < 0.1:
            role = self.random.choice(["system", "assistant", "user", "tool"])
            found.insert(self.random.randrange(len(found) + 1), self.message(role))
        return found

    def value(self, column: str, row: dict[str, Any], as_messages: bool) -> Any:
        if self.rarely():
            return self.random.choice(_ODD)
        if column == "label":
            return self.random.choice([0, "true", None, "safe"]) if self.rarely(3) else self.random.random() < 0.5
        if column == "completions":
            return [self.text() for _ in range(3)]
        if column in ("weight", "id"):
            return self.random.choice([3, 0.5, 2**62 + 1, "a"]) if self.rarely(2) else self.random.randrange(9)
        if column in _ANSWERS:
            return self.answer(row.get("prompt"), as_messages, "prompt" in row)
        if as_messages and column in ("prompt", "messages"):
            return self.messages(["user", *["assistant", "user"] * self.random.randrange(2)])
        return self.text()

    def answer(self, prompt: Any, as_messages: bool, has_prompt: bool) -> Any:
        """An answer alone, of several turns, or after its prompt."""
        whole = self.whole or not has_prompt
        if as_messages:
            turns = self.messages(["assistant", *["user", "assistant"] * (self.random.random() < 0.2)])
            asked = prompt if isinstance(prompt, list) else [{"role": "user", "content": prompt or self.shared}]
            return [*asked, *turns] if whole else turns
        return f"{prompt if has_prompt else self.shared}{self.text()}" if whole else self.text()

    def rows(self) -> tuple[list[Any], str]:
        shape = self.random.choice([*_SHAPES])
        columns = _SHAPES[shape] + self.random.sample(_MORE, self.random.choice([0, 0, 1, 2]))
        is_chat, self.whole = self.random.random() < 0.4, self.random.random() < 0.2
        rows: list[Any] = []
        for _ in range(self.random.choice([1, 2, 3, 6])):
            self.shared = f"\n\nHuman: {self.text()}\n\nAssistant: "
            row: dict[str, Any] = {}
            mixed = is_chat is not self.rarely(2)
            for column in dict.fromkeys(columns):
                if not self.rarely():
                    row[column] = self.value(column, row, mixed)
            if {"chosen", "rejected"} <= row.keys() and self.rarely(2):
                row["rejected"] = row["chosen"]
            rows.append(self.random.choice([None, [], "text", 3]) if self.rarely(0.5) else row)
        return rows, shape


def odd_file(seed: int) -> tuple[str, bytes, str | None]:
    """A file's name, its bytes, and the kind of data that it is read as; None: as its columns say."""
    file = _File(seed)
    rows, shape = file.rows()
    kind = file.random.choice([None, None, "preference" if shape == "implicit" else shape])
    kind = file.random.choice([*_SHAPES]).replace("implicit", "prompt-only") if file.rarely(2) else kind
    end = file.random.choice(["\n", "\r\n", "\n\n"]) if not file.rarely() else "\r"
    form, in_ascii = file.random.choice(["jsonl", "jsonl", "json", "csv"]), file.random.random() < 0.5
    if form == "csv":
        text = _csv([row for row in rows if isinstance(row, dict)], end, twice=file.rarely())
    elif form == "json":
        text = json.dumps(rows, ensure_ascii=in_ascii)
    else:
        texts = [json.dumps(row, ensure_ascii=in_ascii) for row in rows]
        if file.rarely() and texts[0].startswith('{"'):
            texts[0] = '{"prompt": "twice", ' + texts[0][1:]  # a key that may be there already
        text = end.join(texts) + file.random.choice(["", end])
    encoding = file.random.choice(["latin-1", "utf-16"]) if file.rarely() else "utf-8"
    mark = b"\xef\xbb\xbf" if file.random.random() < 0.1 else b""
    return f"odd.{form}", mark + text.encode(encoding, "replace" if encoding == "latin-1" else "surrogatepass"), kind


def odd_files() -> st.SearchStrategy[tuple[str, bytes, str | None]]:
    """Files with few odd things each, since one is enough for a refusal."""
    return st.integers(0, 2**63).map(odd_file)


def _csv(rows: list[dict[str, Any]], end: str, *, twice: bool) -> str:
    columns = list(dict.fromkeys(name for row in rows for name in row)) or ["prompt"]
    columns += columns[:1] * twice
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator=end)
    writer.writerow(columns)
    writer.writerows([_cell(row.get(name)) for name in columns] for row in rows)
    return stream.getvalue()


def _cell(value: Any) -> str:
    return "" if value is None else value if isinstance(value, str) else json.dumps(value)


def check_same(before: dict[str, Any], after: dict[str, Any], kind: str, warnings: list[str]) -> None:
    """A row that was read says what was written: every text in its turn, and every other column.

    What may differ: text as one message, a system column as the first message, a prompt that the answers repeat.
    """
    from frugalign.data.standard import ANSWERS

    read = {"prompt", *ANSWERS.get(kind, ())}
    for name, value in before.items():
        if name not in read and name != "system" and name in after:
            assert _same(value, after[name]), f"`{name}` was changed"
    stripped = any("it is read once" in warning for warning in warnings)
    prompt = _said(after.get("prompt"))
    for name in read - {"prompt"}:
        whole = [*prompt, *_said(after[name], "assistant")]
        asked = _said(before["prompt"]) if before.get("prompt") is not None else []
        answer = _said(before[name], "assistant")
        system = [("system", before["system"])] if (before.get("system") or "").strip() else []
        if stripped or not asked:
            text, given = _text(whole), _text([*system, *asked, *answer])
            assert text == given or (stripped and len(text) < len(given)) or _text(answer).strip() in text, (
                f"`{name}` was changed"
            )
            continue
        possible = [[*asked, *answer], answer, [*system, *asked, *answer], [*system, *answer]]
        possible += [_turns_of(before[name])] if isinstance(before[name], str) else []
        assert any(_same(whole, each) for each in possible), f"`{name}` was changed"
    if "prompt" in before and not (read - {"prompt"}) and isinstance(before["prompt"], str):
        assert prompt[-1] == ("user", before["prompt"]), "the prompt was changed"


def check_read_once(given: list[dict[str, Any]], rows: list[dict[str, Any]], kind: str) -> None:
    """No prompt stands twice where most answers of a column begin with it."""
    from frugalign.data.standard import ANSWERS

    for name in ANSWERS.get(kind, ()):
        pairs = [(each.get("prompt"), each.get(name)) for each in given]
        texts = [pair for pair in pairs if isinstance(pair[0], str) and isinstance(pair[1], str)]
        doubled = [
            len(p.split()) > 1 and a.startswith(p) and bool(a[len(p) :].strip()) and not a.startswith(p * 2)
            for p, a in texts
        ]
        if len(texts) == len(pairs) and sum(doubled) > len(pairs) / 2:
            assert all(
                not _said(row[name])[0][1].startswith(p)
                for row, (p, _), twice in zip(rows, texts, doubled, strict=True)
                if twice
            ), f"`{name}` holds its prompt"


def _said(value: Any, role: str = "user") -> list[tuple[str, str]]:
    return [(role, value)] if isinstance(value, str) else [(each["role"], each["content"]) for each in value or []]


def _text(turns: list[tuple[str, str]]) -> str:
    return "".join("".join(text.split()) for _, text in turns)


def _turns_of(text: str) -> list[tuple[str, str]]:
    from frugalign.data.turns import text_turns

    return [(each["role"], each["content"]) for each in text_turns(text) or []]


def _same(one: Any, other: Any) -> bool:
    """Whether two values are equal; a key or an entry that Arrow fills with null counts as missing."""
    if isinstance(one, dict) and isinstance(other, dict):
        return all(_same(one.get(key), other.get(key)) for key in one.keys() | other.keys())
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
        return len(one) == len(other) and all(_same(a, b) for a, b in zip(one, other, strict=True))
    if isinstance(one, bool) is not isinstance(other, bool):
        return False
    return bool(one == other)


def check_converted(path: str) -> None:
    """What `convert` writes is read, unless it repeats its prompts in some rows. Every row is written or counted."""
    from frugalign.data.convert import convert
    from frugalign.data.formats import OPEN_ASSISTANT
    from frugalign.data.validate import validate_files

    out = room() / "converted.jsonl"
    out.unlink(missing_ok=True)
    found = outcome(lambda: convert(path, str(out)))
    if found is REFUSED:
        return
    (done,) = found[0]
    assert done.format == OPEN_ASSISTANT or done.n_read == done.n_written + sum(done.left_out.values())
    report = outcome(lambda: validate_files(str(out)))
    assert report is not REFUSED and report.n_rows == done.n_written
    assert all("with the prompt" in problem.reason for problem in report.problems), report.problems[0]


def check_odd_file(case: tuple[str, bytes, str | None]) -> None:
    """`validate` and loading agree, every row is there, and says what was written."""
    from frugalign.data.load_files import all_files, load_files
    from frugalign.data.loading import as_datasets
    from frugalign.data.validate import validate_files

    name, content, kind = case
    path = written(room(), name, content)
    check_converted(path)
    report = outcome(lambda: validate_files(path, kind))
    loaded = outcome(lambda: (files := load_files(path, kind), as_datasets(files, path)))
    sound = report is not REFUSED and bool(report)
    assert sound == (loaded is not REFUSED), "validate and loading disagree"
    if not sound:
        return
    files, splits = loaded
    rows = [row for split in splits.values() for row in split]
    assert len(rows) == report.n_rows and len(set(report.kinds.values())) == 1
    assert [warning for file in all_files(files) for warning in file.warnings] == report.warnings
    if name.endswith(".csv"):
        return
    text = content.decode("utf-8-sig")
    given = (
        json.loads(text) if name.endswith(".json") else [json.loads(line) for line in text.split("\n") if line.strip()]
    )
    assert len(given) == len(rows)
    check_read_once(given, rows, next(iter(report.kinds.values())))
    for before, after in zip(given, rows, strict=True):
        check_same(before, after, next(iter(report.kinds.values())), report.warnings)
