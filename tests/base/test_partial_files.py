"""Partial work: resumed by the same work only, without a cut line, and kept in memory where there is no file."""

import json
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


@pytest.mark.parametrize(
    "damage",
    ["[1, 2]", '{"rows": 1, "costs": {}}', '{"rows": [9]}', "null", "\x00", "[" * 5000]
    + [json.dumps({"rows": [9], "costs": costs}) for costs in ({"odd": 1}, {"reward_calls": -1})],
)
def test_rows_after_a_damaged_line_are_done_again(damage: str, tmp_path: Path) -> None:
    path, work = tmp_path / "work.partial", PartialWork(tmp_path / "work.partial")
    for row in (1, 2, 3):
        work.add([row])
    lines = path.read_text().split("\n")
    path.write_text("\n".join([*lines[:2], damage, *lines[3:]]))
    again = PartialWork(path)
    assert again.rows == [1]
    again.add([2])
    assert PartialWork(path).rows == [1, 2]
