"""Groups of responses: how a ranking becomes pairs, and that a file gives back what was written."""

from pathlib import Path

import pytest
from datasets import Dataset

from frugalign.base.errors import FrugalignError
from frugalign.data.groups import Groups, groups_from_dataset, pair_groups, read_groups, save_groups


def test_best_with_worst_by_hand() -> None:
    """Rewards 0, 3, 1, 2, −1 of a…e: b with e, d with a; c is the odd middle. Second group: the best pair has equal texts, the other ties."""
    groups = Groups(
        ["p", "q"],
        [["a", "b", "c", "d", "e"], ["same", "x", "y", "same"]],
        [[[1], [2], [3], [4], [5]], [[6], [7], [8], [6]]],
        [[0.0, 3.0, 1.0, 2.0, -1.0], [2.0, 1.0, 1.0, 0.0]],
    )
    rows, dropped = pair_groups(groups)
    assert [(row["prompt"], row["chosen"], row["rejected"]) for row in rows] == [("p", "b", "e"), ("p", "d", "a")]
    assert (rows[0]["chosen_reward"], rows[0]["rejected_reward"]) == (3.0, -1.0)
    assert (rows[1]["chosen_completion_ids"], rows[1]["rejected_completion_ids"]) == ([4], [1])
    assert (dropped.equal_texts, dropped.ties, dropped.middles) == (1, 1, 1)


def test_nothing_to_pair_says_so() -> None:
    with pytest.raises(FrugalignError, match="no rewards yet"):
        pair_groups(Groups(["p"], [["a", "b"]]))
    with pytest.raises(FrugalignError, match="there are no pairs to train on"):
        pair_groups(Groups(["p"], [["a", "a"]], None, [[1.0, 0.0]]))


def test_rewards_go_to_their_responses() -> None:
    groups = Groups(["p", "q"], [["a", "b"], ["c", "d", "e"]]).ranked([1, 2, 3, 4, 5])
    assert groups.rewards == [[1.0, 2.0], [3.0, 4.0, 5.0]]
    assert groups.flat() == (["p", "p", "q", "q", "q"], ["a", "b", "c", "d", "e"], None)


@pytest.mark.parametrize(
    "groups",
    [
        Groups(
            ["p", "q"], [["a", "b"], ["ç\n\u2028\x85", "d"]], [[[1], [2, 3]], [[4], [5]]], [[0.1, 1 / 3], [2.0, -1e-9]]
        ),
        Groups([[{"role": "user", "content": "p"}]], [["a", "b"]]),
    ],
)
def test_a_file_gives_back_what_was_written(groups: Groups, tmp_path: Path) -> None:
    save_groups(groups, tmp_path / "groups.jsonl")
    assert read_groups(tmp_path / "groups.jsonl") == groups


def test_broken_rows_are_named() -> None:
    with pytest.raises(FrugalignError, match="row 2: `completions` must be a list of at least two"):
        groups_from_dataset(Dataset.from_dict({"prompt": ["p", "q"], "completions": [["a", "b"], ["a"]]}), "g.jsonl")
    rows = Dataset.from_dict({"prompt": ["p"], "completions": [["a", "b"]], "rewards": [[1.0]]})
    with pytest.raises(FrugalignError, match="row 1: 2 completions, but 1 `rewards`"):
        groups_from_dataset(rows, "g.jsonl")


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "holds no responses"),
        (b'{"prompt": "a"', "line 1 is damaged"),
        (b"[7]\n", "line 1"),
        (b"\xff\n", "line 1"),
    ],
)
def test_a_damaged_file_is_one_sentence(content: bytes, sentence: str, tmp_path: Path) -> None:
    (tmp_path / "groups.jsonl").write_bytes(content)
    with pytest.raises(FrugalignError, match=sentence):
        read_groups(tmp_path / "groups.jsonl")
