"""Every problem of every row, in one pass."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from frugalign.base.errors import FrugalignError
from frugalign.data import validate_files

USER = {"role": "user", "content": "Hello"}


def problems(tmp_path: Path, lines: list[Any], kind: str | None = None) -> list[tuple[int | None, str]]:
    path = tmp_path / "d.jsonl"
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return [(problem.row, problem.reason) for problem in validate_files(str(path), kind).problems]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ('{"prompt": "cut', "not valid JSON"),
        ('["prompt"]', "a list, not an object"),
        ('{"prompt": "x", "score": NaN}', "holds NaN"),
        ({"prompt": ""}, "`prompt` is empty"),
        ({"prompt": "  \n"}, "`prompt` is empty"),
        ({"other": 1}, "`prompt` is missing"),
        ({"prompt": None}, "`prompt` is missing"),
        ({"prompt": 3}, "`prompt` is a number, not text"),
        ({"prompt": {"role": "user"}}, "`prompt` is an object"),
        ({"prompt": []}, "`prompt` is empty"),
        ({"prompt": ["hello"]}, "message 1 of `prompt` is text"),
        ({"prompt": [{"content": "x"}]}, "message 1 of `prompt` has no role"),
        ({"prompt": [USER, {"role": "user", "content": 3}]}, "message 2 of `prompt` has a number as its content"),
        ({"prompt": [USER, {"role": "user", "content": " "}]}, "last message has no content"),
    ],
)
def test_each_reason(tmp_path: Path, row: Any, reason: str) -> None:
    good = {"prompt": [USER]} if isinstance(row, dict) and isinstance(row.get("prompt"), list) else {"prompt": "fine"}
    found = problems(tmp_path, [good, row, good])
    assert len(found) == 1
    assert found[0][0] == 2 and reason in found[0][1]


def test_all_problems_in_one_pass_and_in_order(tmp_path: Path) -> None:
    found = problems(tmp_path, [{"prompt": ""}, {"prompt": "fine"}, "{", {"prompt": 1}, "", {"prompt": "fine"}])
    assert [row for row, _ in found] == [1, 3, 4]


def test_columns_of_mixed_types_are_named(tmp_path: Path) -> None:
    found = problems(
        tmp_path, [{"prompt": "a", "label": 1}, {"prompt": "b", "label": 2.5}, {"prompt": "c", "label": "x"}]
    )
    assert found == [(3, "`label` is text, but row 1 has a number")]
    assert "a list, but row 1 has text" in problems(tmp_path, [{"prompt": "a"}, {"prompt": [USER]}])[0][1]


def test_the_kind_follows_from_the_columns(tmp_path: Path) -> None:
    pair = {"prompt": "p", "chosen": "a", "rejected": "b"}
    assert problems(tmp_path, [pair, pair | {"rejected": None}]) == [(2, "`rejected` is missing")]
    answers = {name: [USER, {"role": "assistant", "content": name}] for name in ("chosen", "rejected")}
    assert problems(tmp_path, [answers]) == []  # the prompt is within both
    labelled = {"prompt": "p", "completion": "c", "label": True}
    assert problems(tmp_path, [labelled, labelled | {"label": None}]) == [(2, "`label` is missing")]
    assert problems(tmp_path, [labelled | {"label": "safe"}, labelled | {"label": "unsafe", "completion": ""}]) == [
        (2, "`completion` is empty")
    ]
    path = tmp_path / "d.jsonl"
    assert validate_files(str(path)).kinds == {str(path): "prompt-completion"}
    assert "not true or false" in problems(tmp_path, [labelled | {"label": "safe"}], "unpaired")[0][1]


def test_a_missing_column_is_one_problem_not_one_per_row(tmp_path: Path) -> None:
    assert problems(tmp_path, [{"text": "a", "label": 0}] * 5) == [
        (None, "there is no column `prompt` (there are: text, label)")
    ]
    assert problems(tmp_path, []) == [(None, "there are no rows")]
    with pytest.raises(FrugalignError, match="not a dataset type"):
        problems(tmp_path, [{"prompt": "a"}], "nonsense")


def test_bytes_that_are_not_text_and_a_truncated_archive(tmp_path: Path) -> None:
    path = tmp_path / "latin.jsonl"
    path.write_bytes(b'{"prompt": "fine"}\n{"prompt": "caf\xe9"}\n')
    assert [(p.row, p.reason) for p in validate_files(str(path)).problems] == [(2, "the row is not UTF-8 text")]
    whole = gzip.compress("".join(json.dumps({"prompt": f"row {i * 7919}"}) + "\n" for i in range(5000)).encode())
    cut = tmp_path / "cut.jsonl.gz"
    cut.write_bytes(whole[: len(whole) // 2])
    report = validate_files(str(cut))
    assert report.problems and "cannot be read beyond this row" in report.problems[-1].reason
    assert not report


def test_a_csv_with_an_empty_prompt_and_one_that_is_no_table(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("prompt,label\nhello,safe\n,unsafe\n")
    assert [(p.row, p.reason) for p in validate_files(str(tmp_path / "a.csv")).problems] == [(2, "`prompt` is missing")]
    (tmp_path / "b.csv").write_text("prompt,label\nhello,safe\none,two,three\n")
    broken = [(p.row, p.reason) for p in validate_files(str(tmp_path / "b.csv")).problems]
    assert broken == [(2, "the row has 3 values for 2 columns")]


def test_every_file_of_a_folder_is_checked(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text('{"prompt": "a"}\n{"prompt": ""}\n')
    (tmp_path / "test.jsonl").write_text("{'prompt'\n")
    report = validate_files(str(tmp_path))
    assert report.n_rows == 3
    assert {Path(problem.file).name for problem in report.problems} == {"train.jsonl", "test.jsonl"}


def test_checking_json_lines_needs_neither_torch_nor_datasets() -> None:
    code = (
        "import sys; from frugalign.data.validate import validate_files\n"
        "assert validate_files('frugalign.sandbox:prompts')\n"
        "print([m for m in ('torch', 'datasets', 'transformers') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.stdout.strip(), done.stderr) == ("[]", "")
