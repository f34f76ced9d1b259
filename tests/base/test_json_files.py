"""JSON files of a run: damage is one sentence with the file's name, a line that a crash cut short is left out, and a failed append changes nothing."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pytest

from frugalign.base.errors import FrugalignError
from frugalign.base.json_files import append_lines, read_json, read_lines


@pytest.mark.parametrize(
    "text", ["", "{", "[1]", '"a"', "null", '{"a": NaN}', '{"a":' * 5000, '{"a": 1, "a": 2}', "\x00"]
)
def test_a_damaged_file_is_named(text: str, tmp_path: Path) -> None:
    path = tmp_path / "costs.json"
    assert read_json(path) == {}
    path.write_text(text)
    with pytest.raises(FrugalignError) as raised:
        read_json(path)
    assert str(path) in str(raised.value) and "\n" not in str(raised.value)


def test_what_stands_in_a_files_place_is_said(tmp_path: Path) -> None:
    (tmp_path / "costs.json").mkdir()
    for read in (read_json, read_lines):
        with pytest.raises(FrugalignError, match=r"costs\.json: a folder stands in its place"):
            read(tmp_path / "costs.json")
    path = tmp_path / "other.json"
    path.write_bytes(b"\xff\xfe{}")
    with pytest.raises(FrugalignError, match=r"other\.json is not valid JSON"):
        read_json(path)


def test_a_cut_line_is_left_out_unless_the_file_is_written_at_once(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    path.write_bytes(b'{"step": 1}\n[2]\n{"step": 3}\n{"ste')
    assert read_lines(path) == [{"step": 1}, {"step": 3}]
    with pytest.raises(FrugalignError, match="line 2 is damaged: it is not an object"):
        read_lines(path, whole=True)
    path.write_bytes('{"a": "b\u2028c"}\n'.encode())
    assert read_lines(path, whole=True) == [{"a": "b\u2028c"}]
    path.write_bytes(b"")
    assert read_lines(path, whole=True) == []


def test_a_failed_append_leaves_the_file_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "lines.jsonl"
    append_lines(path, ["1", "2"])

    class Full:
        """A file on a disk with room for three bytes."""

        def __init__(self, file: Any) -> None:
            self.file, self.room = file, 3

        def __enter__(self) -> Full:
            return self

        def __exit__(self, *_: Any) -> None:
            self.file.close()

        def write(self, data: memoryview) -> int:
            if not self.room:
                raise OSError(errno.ENOSPC, "full")
            written: int = self.file.write(data[: self.room])
            self.room -= written
            return written

        def __getattr__(self, name: str) -> Any:
            return getattr(self.file, name)

    real = Path.open
    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", lambda *args, **kwargs: Full(real(*args, **kwargs)))
        with pytest.raises(FrugalignError, match="no space is left on the disk"):
            append_lines(path, ["345678"])
    assert path.read_text() == "1\n2\n"
    with pytest.raises(FrugalignError, match="its folder is gone"):
        append_lines(tmp_path / "gone" / "lines.jsonl", ["1"])
