"""Partial work: resumed by the same work only, without a cut line, and kept in memory where there is no file."""

from collections.abc import Callable
from pathlib import Path

import pytest

from frugalign.base.ledger import Ledger
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


def test_a_chunk_is_kept_with_its_costs_or_not_at_all(tmp_path: Path) -> None:
    """Two chunks of 5 and 7 tokens, cut at every byte: the rows that are kept cost what they cost."""
    path, work = tmp_path / "work.partial", PartialWork(tmp_path / "work.partial", "task")
    for rows, tokens in (([1, 2], 5), ([3], 7)):
        spent = Ledger()
        spent.count(generated_tokens=tokens, reward_calls=len(rows))
        work.add(rows, spent)
    assert work.spent.generated_tokens == 0, "only what was read"
    whole = path.read_bytes()
    for end in range(len(whole) + 1):
        path.write_bytes(whole[:end])
        found = PartialWork(path, "task")
        expected = {(): (0, 0), (1, 2): (5, 2), (1, 2, 3): (12, 3)}[tuple(found.rows)]
        assert (found.spent.generated_tokens, found.spent.reward_calls) == expected
        assert found.rows == [1, 2, 3] or end < len(whole)


def three_rows(path: Path) -> list[str]:
    """The lines of a file of three chunks: the task, and one line per chunk."""
    work = PartialWork(path)
    for row in ([["a text"], [[1, 2]]], [["b text"], [[3, 4]]], [["c text"], [[5]]]):
        work.add([row])
    return path.read_text().split("\n")


@pytest.mark.parametrize(
    "change",
    [
        lambda line, other: "[1, 2]",
        lambda line, other: "null",
        lambda line, other: "\x00",
        lambda line, other: "[" * 5000,
        lambda line, other: line.replace("[3, 4]", "[3, 5]"),
        lambda line, other: line.replace("b text", "b tex"),
        lambda line, other: line.replace('[["b text"], [[3, 4]]]', '{"texts": ["b text"]}'),
        lambda line, other: line.replace('"b text"', "7"),
        lambda line, other: line.replace('"reward_calls": 0', '"reward_calls": 1'),
        lambda line, other: line.split(" ", 1)[1],
        lambda line, other: "0" * 24 + line[24:],
        lambda line, other: other,
        lambda line, other: "",
    ],
)
def test_rows_after_a_damaged_line_are_done_again(
    change: Callable[[str, str], str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The second chunk, in another form, with other values, or the third one in its place."""
    path = tmp_path / "work.partial"
    lines = three_rows(path)
    changed = change(lines[2], lines[3])
    assert changed != lines[2]
    path.write_text("\n".join([*lines[:2], changed, *lines[3:]]))
    again = PartialWork(path)
    assert again.rows == [[["a text"], [[1, 2]]]]
    assert f"{path} is damaged: what follows its first 1 rows is done again." in caplog.messages
    again.add([2])
    assert PartialWork(path).rows == [*again.rows[:1], 2]


def test_chunks_of_another_task_do_not_fit(tmp_path: Path) -> None:
    """Lines that are whole by themselves, under the first line of other work."""
    lines = three_rows(tmp_path / "a.partial")
    PartialWork(tmp_path / "b.partial", "other")
    mine = (tmp_path / "b.partial").read_text()
    (tmp_path / "b.partial").write_text(mine + "\n".join(lines[1:]))
    assert PartialWork(tmp_path / "b.partial", "other").rows == []
