"""Files as people have them: `validate` and loading refuse the same rows with the same words, or both read them rightly."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

from frugalign.base.errors import FrugalignError
from frugalign.data import load_splits, validate_files
from frugalign.data.load_files import columns_of
from frugalign.data.rows import BATCH_ROWS

FINE = {"prompt": "fine"}


def lines(*rows: Any) -> bytes:
    return "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows).encode()


def deep(levels: int) -> str:
    return '{"prompt": "a", "x": ' + "[" * levels + "]" * levels + "}"


WHOLE = gzip.compress(lines(*({"prompt": f"row {i * 7919}"} for i in range(2000))))
REFUSED: dict[str, tuple[bytes, int | None, str]] = {
    # Text and numbers that no table can hold.
    "half.jsonl": (lines(FINE, '{"prompt": "cut \\ud83d"}'), 2, "`prompt` holds half a character, U+D83D"),
    "half-within.jsonl": (
        lines(FINE, '{"prompt": "a", "m": {"x": ["\\udc4d"]}}'),
        2,
        "`m` holds half a character, U+DC4D",
    ),
    "long-half-key.jsonl": (
        lines('{"prompt": "a", "' + 500 * "x" + '\\ud83d": 1}'),
        None,
        f"the name of the column `{79 * 'x'}…` holds half a character",
    ),
    "long-key.jsonl": (
        lines('{"prompt": "a", "' + 500 * "y" + '": 1}', '{"prompt": "a", "' + 500 * "y" + '": "b"}'),
        2,
        f"`{79 * 'y'}…` ",
    ),
    "half-key.jsonl": (lines('{"prompt": "a", "\\ud83d": 1}'), None, "holds half a character"),
    "half.json": (b'[{"prompt": "a"}, {"prompt": "\\ud83d"}]', 2, "`prompt` holds half a character, U+D83D"),
    "integer.jsonl": (lines(FINE | {"n": 1}, FINE | {"n": 2**63}), 2, "`n` holds an integer beyond 64 bits"),
    "integer-within.jsonl": (lines(FINE | {"n": {"a": [-(10**30)]}}), 1, "`n` holds an integer beyond 64 bits"),
    "digits.jsonl": (lines('{"prompt": "a", "n": ' + "9" * 5000 + "}"), 1, "an integer beyond 64 bits"),
    "infinite.jsonl": (lines('{"prompt": "a", "n": 1e999}'), 1, "the row holds 1e999, which is beyond"),
    "fractions.jsonl": (lines(FINE | {"n": 2**60 + 1}, FINE | {"n": 0.5}), 1, "`n` holds fractions, and whole numbers"),
    "nul.jsonl": (lines('{"prompt": "a\\u0000b"}'), 1, "`prompt` holds a NUL character"),
    "nul.csv": (b"prompt\na\0b\n", 1, "`prompt` holds a NUL character"),
    # Types that are mixed, in columns that are not even read.
    "mixed.jsonl": (lines(FINE | {"n": 1}, FINE | {"n": "a"}), 2, "`n` is text, but row 1 has a number"),
    "boolean.jsonl": (lines(FINE | {"n": 1.5}, FINE | {"n": True}), 2, "`n` is a boolean, but row 1 has a number"),
    "mixed-within.jsonl": (
        lines(FINE | {"m": {"a": 1}}, FINE | {"m": {"a": "x"}}),
        2,
        "`m` holds values of other types than in row 1",
    ),
    "mixed-list.jsonl": (lines(FINE, FINE | {"m": [1, "a"]}), 2, "`m` mixes types within this row"),
    "mixed-late.jsonl": (
        lines(*[FINE | {"n": 1}] * BATCH_ROWS, FINE | {"n": "a"}),
        BATCH_ROWS + 1,
        "row 1 has a number",
    ),
    "messages.csv": (
        b"prompt\n\"[{'role': 'user', 'content': 'Hi'}]\"\n",
        1,
        "a list of messages that was written as text",
    ),
    # JSON that is built otherwise.
    "deep.jsonl": (lines(FINE, deep(100_000)), 2, "nests lists and objects more than 32 deep"),
    "deep.json": (b"[" + deep(100_000).encode() + b"]", 1, "nests lists and objects more than 32 deep"),
    "less-deep.jsonl": (lines(deep(200)), 1, "nests lists and objects more than 32 deep"),
    "twice.jsonl": (lines(FINE, '{"prompt": "a", "prompt": "b"}'), 2, "the row has the key 'prompt' twice"),
    "twice-spaced.jsonl": (lines(FINE, '{"prompt" : "a", "prompt" : "b"}'), 2, "the row has the key 'prompt' twice"),
    "twice-within.json": (b'[{"prompt": "a", "m": {"x": 1, "x": 2}}]', 1, "the row has the key 'x' twice"),
    "array.jsonl": (json.dumps([FINE, FINE]).encode(), None, "the file is one JSON array, not one object per line"),
    "array-of-lines.jsonl": (json.dumps([FINE], indent=1).encode(), None, "the file is one JSON array"),
    "object.jsonl": (json.dumps(FINE, indent=1).encode(), None, "the file is one JSON object over several lines"),
    "wrapped.json": (json.dumps({"data": [FINE]}).encode(), None, "its rows seem to be the list 'data'"),
    "nan.json": (b'[{"prompt": "a"}, {"prompt": NaN}, {"prompt": "b"}]', 2, "the row holds NaN"),
    "cut.json": (b'[{"prompt": "a"}, {"prompt": "x', 2, "the rest of the file is not read"),
    "open.json": (b'[{"prompt": "a"}', 2, "the array is not closed"),
    # CSV that is built otherwise.
    "semicolon.csv": (b"prompt;label\na;b\n", None, "the columns are separated by semicolons, not by commas"),
    "quoted.csv": (b'"prompt";"label"\n"a";"b"\n', None, "the columns are separated by semicolons"),
    "tab.csv": (b"prompt\tlabel\na\tb\n", None, "the columns are separated by tabs"),
    "quote.csv": (b'prompt,label\n"a,b\nc,d\n', 1, "the row is not valid CSV"),
    "latin.csv": (b"prompt\nfine\ncaf\xe9\n", 2, "the row is not UTF-8 text"),
    "twice.csv": (b"prompt,prompt\na,b\n", None, "two columns have the name `prompt`"),
    "header.csv": (b"prompt,label\n", None, "there are no rows"),
    # Files that are damaged, packed or named wrongly.
    "damaged.jsonl.gz": (WHOLE[: len(WHOLE) // 2], 1, "cannot be read beyond this row"),
    "damaged.csv.gz": (gzip.compress(b"prompt\n" + b"a\n" * 99)[:-9], 1, "cannot be read beyond this row"),
    "flipped.jsonl.gz": (WHOLE[:99] + bytes([WHOLE[99] ^ 255]) + WHOLE[100:], None, ""),
    "plain.jsonl.gz": (lines(FINE), 1, "cannot be read beyond this row (Not a gzipped file"),
    "packed.jsonl": (WHOLE, None, "the file is compressed with gzip; add .gz to its name"),
    "prompts.jsonl.zst": (b"\x28\xb5\x2f\xfd", None, "unpack it with `zstd -d "),
    "prompts.jsonl.xz": (b"\xfd7zXZ", None, "unpack it with `unxz "),
    "hidden-zst.jsonl": (b"\x28\xb5\x2f\xfd", None, "the file is compressed with zstd"),
    "wide.jsonl": ('{"prompt": "a"}\n'.encode("utf-16"), None, "the file is UTF-16 text; save it as UTF-8"),
    "table.jsonl": (b"PAR1xxxx", None, "the file is a Parquet file; rename it to .parquet"),
    "text.parquet": (b"hello", None, "the file cannot be read"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_validate_refuses_what_loading_refuses_with_the_same_words(tmp_path: Path, name: str) -> None:
    content, row, reason = REFUSED[name]
    path = tmp_path / name
    path.write_bytes(content)
    problems = validate_files(str(path)).problems
    with pytest.raises(FrugalignError) as caught:
        load_splits(str(path))
    assert str(caught.value).startswith(str(problems[0])) and "\n" not in str(caught.value)
    if reason:
        assert reason in problems[0].reason
    if "beyond this row" not in reason and reason:
        assert problems[0].row == row


READ: dict[str, tuple[bytes, list[dict[str, Any]]]] = {
    "mark.jsonl": (b"\xef\xbb\xbf" + lines(FINE), [FINE]),
    "mark.json": (b"\xef\xbb\xbf" + json.dumps([FINE]).encode(), [FINE]),
    "mark.csv": (b"\xef\xbb\xbfprompt,label\r\na,b\r\n", [{"prompt": "a", "label": "b"}]),
    "lines.json": (lines(FINE, FINE), [FINE, FINE]),
    "one.json": (json.dumps(FINE, indent=1).encode(), [FINE]),
    # Text stays text: None, N/A and nan are no missing values, and a prompt of digits is no number.
    "words.csv": (
        b"prompt,a,b\nNone,N/A,x\nnan,NULL,\n007,nan,y\n",
        [
            {"prompt": "None", "a": "N/A", "b": "x"},
            {"prompt": "nan", "a": "NULL", "b": None},
            {"prompt": "007", "a": "nan", "b": "y"},
        ],
    ),
    "numbers.csv": (
        b"prompt,zip,n,f,b,none\n1,007,1,1.5,True,\n2,010,,2,false,\n",
        [
            {"prompt": "1", "zip": "007", "n": 1, "f": 1.5, "b": True, "none": None},
            {"prompt": "2", "zip": "010", "n": None, "f": 2.0, "b": False, "none": None},
        ],
    ),
    "lines-within.csv": (b'prompt\n"two\nlines, ""quoted"""\n', [{"prompt": 'two\nlines, "quoted"'}]),
    "numbers.jsonl": (lines(FINE | {"n": 1}, FINE | {"n": 0.5}, FINE), [FINE | {"n": x} for x in (1.0, 0.5, None)]),
    "deep.jsonl": (lines(deep(31)), [json.loads(deep(31))]),
    "system.jsonl": (
        lines({"prompt": "a", "system": ""}, {"prompt": "b", "system": "Be kind."}),
        [
            {"prompt": [{"role": "user", "content": "a"}]},
            {"prompt": [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "b"}]},
        ],
    ),
}


@pytest.mark.parametrize("name", READ)
def test_what_can_be_read_is_read_rightly(tmp_path: Path, name: str) -> None:
    content, rows = READ[name]
    (tmp_path / name).write_bytes(content)
    assert load_splits(str(tmp_path / name))["train"].to_list() == rows
    assert not validate_files(str(tmp_path / name)).problems


def test_batches_form_one_table(tmp_path: Path) -> None:
    """A column that begins late, a system prompt that comes late, and whole numbers before a fraction."""
    rows: list[dict[str, Any]] = [{"prompt": f"p{i}", "n": i} for i in range(BATCH_ROWS)]
    rows += [{"prompt": "late", "n": 0.5, "system": "Be kind.", "tag": "x"}]
    (tmp_path / "d.jsonl").write_bytes(lines(*rows))
    found = load_splits(str(tmp_path / "d.jsonl"))["train"]
    assert len(found) == BATCH_ROWS + 1 and found.column_names == ["prompt", "n", "tag"]
    assert found[1] == {"prompt": [{"role": "user", "content": "p1"}], "n": 1.0, "tag": None}
    assert [message["role"] for message in found[BATCH_ROWS]["prompt"]] == ["system", "user"]
    assert columns_of(str(tmp_path / "d.jsonl")) == {"prompt", "n"}


def test_a_pair_set_without_a_prompt_is_refused_by_row(tmp_path: Path) -> None:
    rows = [{"system": "Be terse.", "question": f"q{i}", "chosen": f"The {i}.", "rejected": "The B."} for i in range(3)]
    path = tmp_path / "orca.jsonl"
    path.write_bytes(lines(*rows))
    reasons = [str(problem) for problem in validate_files(str(path)).problems]
    assert len(reasons) == 3
    assert reasons[0].startswith(
        f"{path}, row 1: there is no column `prompt`, and chosen and rejected share no prompt in row 1 (there are: system, question, "
    )
    assert f"`frugalign convert {path} OUT.jsonl`" in reasons[0]
    with pytest.raises(FrugalignError, match=r"share no prompt in row 1 .* and 2 more problems"):
        load_splits(str(path), kind="preference")


def test_columns_that_nothing_reads_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "d.jsonl"
    path.write_bytes(lines(FINE | {"tools": "[]", "context": "c", "source": "web"}))
    warnings = [f"{path}: `context`, `tools` are not read."]
    assert validate_files(str(path)).warnings == warnings
    load_splits(str(path))
    assert caplog.messages == warnings


def whole(question: str, answer: str) -> str:
    return f"Human: {question}\nAssistant: {answer}"


def pair(question: str, chosen: str = "yes", rejected: str = "no", **more: Any) -> dict[str, Any]:
    """A pair whose answers hold their prompt."""
    prompt = f"Human: {question}\nAssistant:"
    return {"prompt": prompt, "chosen": whole(question, chosen), "rejected": whole(question, rejected), **more}


def test_answers_that_begin_with_the_prompt_in_every_row(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    path.write_bytes(lines(pair("a"), pair("b")))
    found = load_splits(str(path), kind="preference")["train"]
    assert found.to_list() == [{**pair(q), "chosen": " yes", "rejected": " no"} for q in "ab"]
    warning = f"{path}: `chosen` and `rejected` begin with the prompt in every row; it is read once."
    assert validate_files(str(path)).warnings == [warning]
    # Of one column, of messages, with a system prompt, and with other white space.
    path.write_bytes(lines(*(pair(q) | {"rejected": "no"} for q in "ab")))
    found = load_splits(str(path), kind="preference")["train"]
    assert (found["chosen"][:], found["rejected"][:]) == ([" yes"] * 2, ["no"] * 2)
    path.write_bytes(lines(pair("a", system="Be kind."), pair("b")))
    found = load_splits(str(path), kind="preference")["train"]
    assert [message["content"] for row in found["chosen"] for message in row] == [" yes", " yes"]
    # The only row of a file is like those of the others.
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "train.jsonl").write_bytes(lines(pair("a"), pair("b")))
    (tmp_path / "more" / "test.jsonl").write_bytes(lines(pair("c")))
    assert load_splits(str(tmp_path / "more"), kind="preference")["test"]["chosen"][:] == [" yes"]
    rows = [{"prompt": "Hi?\n", "completion": "\nHi? Yes."}, {"prompt": "Ho?", "completion": "Ho?\nNo."}]
    path.write_bytes(lines(*rows))
    assert load_splits(str(path), kind="prompt-completion")["train"]["completion"][:] == [" Yes.", "\nNo."]
    assert validate_files(str(path)).warnings == [
        f"{path}: `completion` begins with the prompt in every row; it is read once."
    ]


@pytest.mark.parametrize(
    ("rows", "row", "reason"),
    [
        ([pair("a"), pair("b"), {"prompt": "c", "chosen": "d", "rejected": "e"}], 3, "in 2 of 3 rows"),
        (
            [pair("a", "", "no"), pair("b"), pair("c")],
            1,
            "`chosen` does not begin with the prompt, as it does in 2 of 3 rows",
        ),
        # Without the prompt in one column, its length in the other one would tell which answer is better.
        (
            [pair("a"), *(pair(q) | {"rejected": "no"} for q in "bcd")],
            2,
            "`rejected` does not begin with the prompt, as it does in 1 of 4 rows",
        ),
        ([{"prompt": "Hi there", "completion": "Hi there, you"}], None, "begins with the prompt in the only row"),
        ([pair("a")], None, "`chosen` begins with the prompt in the only row; leave the prompt out of it"),
        ([pair("a", label="safe", system="Be kind.")], None, "`chosen` begins with the prompt in the only row"),
    ],
)
def test_a_file_that_may_repeat_its_prompts_is_refused(
    tmp_path: Path, rows: list[dict[str, Any]], row: int | None, reason: str
) -> None:
    path = tmp_path / "d.jsonl"
    path.write_bytes(lines(*rows))
    problem = validate_files(str(path)).problems[0]
    assert problem.row == row and reason in problem.reason
    with pytest.raises(FrugalignError, match="begin"):
        load_splits(str(path), kind="preference" if "chosen" in rows[0] else "prompt-completion")


@pytest.mark.parametrize("quote", ["Hello, you.", "Hello there.", "Hello\nHello"])
def test_an_answer_that_quotes_its_prompt_is_kept(tmp_path: Path, quote: str) -> None:
    rows = [
        {"prompt": "Hello", "chosen": quote, "rejected": "Hello?"},
        {"prompt": "Tea?", "chosen": "Yes", "rejected": "No"},
    ]
    path = tmp_path / "d.jsonl"
    path.write_bytes(lines(*rows))
    assert load_splits(str(path), kind="preference")["train"].to_list() == rows
    assert validate_files(str(path)).warnings == [
        f"{path}: `{name}` begins with the prompt in 1 of 2 rows; these answers are left as they are."
        for name in ("chosen", "rejected")
    ]
    words = [{"prompt": "a", "completion": "all"}, {"prompt": "an", "completion": "any"}]  # words that begin alike
    path.write_bytes(lines(*words))
    assert load_splits(str(path), kind="prompt-completion")["train"].to_list() == words
    assert validate_files(str(path)).warnings == []


def test_parts_of_a_split_that_do_not_fit_together(tmp_path: Path) -> None:
    (tmp_path / "train-0.jsonl").write_bytes(lines(FINE | {"n": 1}))
    (tmp_path / "train-1.jsonl").write_bytes(lines(FINE | {"n": "a"}))
    problems = validate_files(str(tmp_path)).problems
    assert [problem.reason for problem in problems] == [
        f"`n` has another type than in {tmp_path / 'train-0.jsonl'}, its first part"
    ]
    with pytest.raises(FrugalignError, match="`n` has another type"):
        load_splits(str(tmp_path))


def test_parquet_and_stored_data_sets_are_checked_alike(tmp_path: Path) -> None:
    rows = [{"prompt": "a", "n": 1}, {"prompt": None, "n": 2}]
    Dataset.from_list(rows).to_parquet(tmp_path / "d.parquet")
    Dataset.from_list(rows).save_to_disk(tmp_path / "saved")
    for name in ("d.parquet", "saved"):
        assert [(p.row, p.reason) for p in validate_files(str(tmp_path / name)).problems] == [
            (2, "`prompt` is missing")
        ]


@pytest.mark.parametrize("name", ["a\0b", "x" * 5000 + ".jsonl", "/dev/null", "no such thing/x/y", "a b.c"])
def test_names_of_nothing_are_one_sentence(name: str) -> None:
    with pytest.raises(FrugalignError) as caught:
        load_splits(name)
    assert "file or folder" in str(caught.value) and "\0" not in str(caught.value)


def test_a_mistyped_path_does_not_ask_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "data").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FrugalignError, match="There is no data file or folder data/promts"):
        load_splits("data/promts")


def test_problems_are_printed_without_control_characters(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    path.write_bytes(lines({"\x1b[31mred": 1}))
    problem = validate_files(str(path)).problems[0]
    assert "\\x1b[31mred" in str(problem) and "\x1b" not in str(problem)
