"""Any rows at all: `validate` and loading agree, what `convert` writes is valid, and nothing ends in a traceback."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from frugalign.base.errors import FrugalignError
from frugalign.data import load_splits, validate_files
from frugalign.data.convert import convert

COLUMNS = [
    *("prompt", "chosen", "rejected", "completion", "label", "system", "completions", "n", "instruction", "output"),
    *("conversations", "response_0", "response_1", "better_response_id", "message_id", "parent_id", "role", "text"),
]
GOOD = [
    *("Hi", "a b\nc", "Human: a\nAssistant: b", "Human: a\nAssistant: c", 0, 1, True, ["a", "b"]),
    [{"role": "user", "content": "Hi"}],
    [{"role": "assistant", "content": "Yes"}],
    [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "No"}],
]
ODD = [
    *("", " ", "\0", "\ud83d", "007", "nan", "[{'role': 'user', 'content': 'Hi'}]", "Human: a\nAssistant:"),
    *(
        None,
        False,
        -1,
        2**63,
        2**53 + 1,
        0.5,
        float("nan"),
        [],
        {},
        [1, "a"],
        [[1], [2]],
        {"a": 1},
        {"a": [{"b": "c"}]},
    ),
    [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Yes"}],
    [{"role": 1, "content": None}],
]


def any_rows(draw: random.Random) -> list[dict[str, Any]]:
    """Rows with mostly the same columns and mostly good values."""

    def value() -> Any:
        return draw.choice(GOOD if draw.random() < 0.8 else ODD)

    same = {name: value() for name in draw.sample(COLUMNS, draw.randrange(1, 4))}
    if draw.random() < 0.7:
        same["prompt"] = "Hi"
    return [
        same | ({draw.choice(list(same)): value()} if draw.random() < 0.4 else {}) for _ in range(draw.randrange(5))
    ]


def damaged(content: bytes, draw: random.Random) -> bytes:
    """The content with one byte changed, a part cut out or its end missing, sometimes."""
    place = draw.randrange(len(content) + 1)
    change = draw.randrange(12)
    if change == 0:
        return content[:place] + bytes([draw.randrange(256)]) + content[place + 1 :]
    if change == 1:
        return content[:place] + content[place + draw.randrange(9) :]
    return content[:place] if change == 2 else content


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_validate_is_loading(tmp_path: Path, seed: int) -> None:
    draw = random.Random(seed)
    for _ in range(60):
        rows, array = any_rows(draw), draw.random() < 0.3
        text = json.dumps(rows) if array else "".join(json.dumps(row) + "\n" for row in rows)
        path, out = tmp_path / ("d.json" if array else "d.jsonl"), tmp_path / "out.jsonl"
        path.write_bytes(damaged(text.encode(), draw))
        report = validate_files(str(path))
        try:
            load_splits(str(path), kind=next(iter(report.kinds.values())))
        except FrugalignError as error:
            assert str(error).startswith(str(report.problems[0]))
        else:
            assert not report.problems
        try:
            convert(str(path), str(out))
        except FrugalignError:
            assert not out.exists()
        else:
            assert validate_files(str(out)), path.read_bytes()
            out.unlink()
        assert not list(tmp_path.glob(".*"))
