"""YAML and JSON of strangers: one sentence for every fault, found in bounded time."""

from __future__ import annotations

import math
import os
import time
from pathlib import Path

import pytest

from frugalign.base.errors import FrugalignError
from frugalign.base.parsing import MAX_BYTES, dump_yaml, parse_json, parse_yaml, read_yaml

BOMB = "a0: &a0 [x, x]\n" + "".join(f"a{n + 1}: &a{n + 1} [*a{n}, *a{n}, *a{n}]\n" for n in range(60))


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("", None),
        ("[1e-4, 5E-1, 1e400, -.5, 1., 1_000, 0x1f, 0b11]", [1e-4, 0.5, math.inf, -0.5, 1.0, 1000, 31, 3]),
        ("[010, 1:30, 2024-01-01, =, ~, yes, null]", [10, "1:30", "2024-01-01", "=", None, True, None]),
        ("a: &x {b: 1, c: 2}\nd: {<<: *x, c: 3}", {"a": {"b": 1, "c": 2}, "d": {"b": 1, "c": 3}}),
        ("a: !!str 12", {"a": "12"}),
        ("'1': a", {"1": "a"}),
    ],
)
def test_what_is_read(text: str, value: object) -> None:
    assert parse_yaml(text, "the file") == value


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("a: 1\nb: 2\na: 3", "The file, line 3: the key 'a' is given twice."),
        ("a: {<<: {b: 1, b: 2}}", "The file, line 1: the key 'b' is given twice."),
        ("1: a", "The file, line 1: the key 1 must be text; put it in quotes."),
        ("on: a", "The file, line 1: the key on must be text; put it in quotes."),
        ("2024-01-01: a\n? [b]\n: c", "The file, line 2: a key must be text, not a list or a mapping."),
        ("a: !!python/object/apply:os.system ['true']", "The file, line 1: the tag !!python/object/apply:os.system is not read here."),
        ("a: !mine 1", "The file, line 1: the tag !mine is not read here."),
        ("a: !!timestamp 2024-01-01", "The file, line 1: the tag !!timestamp is not read here."),
        ("a: !!binary aGk=", "The file, line 1: the tag !!binary is not read here."),
        ("a: !!int many", "The file, line 1: 'many' is not a number."),
        ("a: &a [*a]", "The file, line 1: an alias contains itself."),
        ("a: &a\n  b: *a", "The file, line 1: an alias contains itself."),
        ("a: [", "The file, line 1 is not valid YAML: did not find expected node content."),
        ("a: 1\n---\nb: 2", "The file, line 2 is not valid YAML: but found another document."),
    ],
)  # fmt: skip
def test_what_is_refused(text: str, sentence: str) -> None:
    with pytest.raises(FrugalignError) as raised:
        parse_yaml(text, "the file")
    assert str(raised.value) == sentence


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (BOMB, "repeat it to more than 100,000 values"),
        ("[" * 100_000, "nested more than 50 levels deep"),
        ("".join(" " * depth + "a:\n" for depth in range(400)), "nested more than 50 levels deep"),
        ("? " * 60_000, "nested more than 50 levels deep"),
        ("a: " + "9" * 5000, "is not a number"),
        ("a: \x00", "is not valid YAML"),
    ],
    ids=["aliases", "lists", "mappings", "keys", "digits", "nul"],
)
def test_an_attack_is_one_short_sentence_in_time(text: str, sentence: str) -> None:
    began = time.perf_counter()
    with pytest.raises(FrugalignError, match=sentence) as raised:
        parse_yaml(text, "the file")
    assert time.perf_counter() - began < 2
    assert len(str(raised.value)) < 300 and "\n" not in str(raised.value)


def test_a_file(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_bytes("\ufeffa: ü\n".encode())
    assert read_yaml(path, "config file") == {"a": "ü"}
    path.write_bytes(b"a: \xff\n")
    with pytest.raises(FrugalignError, match=r"^The config file .*a\.yaml is not UTF-8 text\.$"):
        read_yaml(path, "config file")
    path.write_text("#" * (MAX_BYTES + 1))
    with pytest.raises(FrugalignError, match="is larger than 256 KiB"):
        read_yaml(path, "config file")


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("nowhere.yaml", "There is no config file nowhere.yaml."),
        ("n" * 300, "Cannot read the config file nnn"),
        ("a\0b", "Cannot read the config file a\\x00b: embedded null byte."),
        ("~no-such-user-here/a.yaml", "Cannot read the config file ~no-such-user-here/a.yaml"),
        (os.curdir, "Cannot read the config file .: Is a directory."),
        ("/dev/zero", "The config file /dev/zero is larger than 256 KiB."),
    ],
)
def test_a_name_that_is_no_file(name: str, sentence: str) -> None:
    with pytest.raises(FrugalignError) as raised:
        read_yaml(name, "config file")
    assert str(raised.value).startswith(sentence) and len(str(raised.value)) < 200


def test_what_is_written_is_read_back() -> None:
    value = {
        "a": ["1e5", "0o17", "2024-01-01", "1:30", "yes", "010", "=", "", "~", "null", "ü\x1b"],
        "b": [1e-5, 3, None, True],
    }
    assert parse_yaml(dump_yaml(value), "the file") == value


def test_json() -> None:
    assert parse_json('{"a": NaN, "a": 1}') == {"a": 1}
    for text in ("[" * 100_000, '{"a":' * 100_000, "{", b"\xff", "9" * 5000):
        with pytest.raises(ValueError):
            parse_json(text)
    for text in ('{"a": NaN}', "[Infinity]", '{"a": 1, "a": 2}'):
        with pytest.raises(ValueError):
            parse_json(text, strict=True)
