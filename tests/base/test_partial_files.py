"""Partial work: resumed by the same work only, without a cut line, and kept in memory where there is no file."""

from pathlib import Path

from frugalign.base.partial_files import PartialWork

ROWS = [["a line\u2028that seems to end", [1]], {"total": [0.5, float("inf")]}]


def test_the_same_work_goes_on_and_other_work_begins_anew(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "work.partial"
    PartialWork(path, "prompts", 3).add(ROWS[:1])
    again = PartialWork(path, "prompts", 3)
    again.add(ROWS[1:])
    assert again.rows == PartialWork(path, "prompts", 3).rows == ROWS
    assert PartialWork(path, "prompts", 4).rows == []
    assert PartialWork(path, "prompts", 3).rows == []


def test_a_line_cut_by_a_kill_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "work.partial"
    PartialWork(path).add(ROWS)
    whole = path.read_bytes()
    for end in range(len(whole)):
        path.write_bytes(whole[:end])
        found = PartialWork(path).rows
        assert found == ROWS[: whole[:end].count(b"\n") - 1 if b"\n" in whole[:end] else 0]
    PartialWork(path).add([1])
    assert PartialWork(path).rows[-1] == 1


def test_without_a_file_the_rows_are_in_memory(tmp_path: Path) -> None:
    work = PartialWork(None, "x")
    work.add(iter(ROWS))
    assert work.rows == ROWS and list(tmp_path.iterdir()) == []
