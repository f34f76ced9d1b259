"""The AUROC by group by hand, and what is said where it is low, missing or not measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from frugalign.data.labelled import load_preference_data
from frugalign.methods.representation_reward.examples import joined
from frugalign.methods.representation_reward.measures import group_note, groups_of
from frugalign.methods.representation_reward.run import layer_blocks

SCORES = np.array([3.0, 1.0, 2.0, 0.0, 5.0, 4.0])


def labelled(folder: Path, **changed: Any) -> str:
    """Answers a…f. Good are b, d to safe prompts and e to an unsafe one."""
    rows = [
        {"prompt": f"prompt {answer}", "completion": answer, "label": answer in "bde", "kind": "safe" if answer in "abcd" else "unsafe"}
        for answer in "abcdef"
    ]  # fmt: skip
    rows[-1] |= changed
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(folder / "rows.jsonl")


@pytest.mark.parametrize(
    ("depth", "blocks"),
    [
        (1, [[0]]),
        (2, [[0], [1], [0, 1]]),
        (5, [[0, 1], [2], [3, 4], [0, 1, 2, 3, 4]]),
        (6, [[0, 1], [2, 3], [4, 5], [0, 1, 2, 3, 4, 5]]),
    ],
)
def test_the_candidate_layers_are_each_third_and_all(depth: int, blocks: list[list[int]]) -> None:
    assert layer_blocks(depth) == blocks


def test_the_auroc_within_each_group_by_hand(tmp_path: Path) -> None:
    """Safe: good 1 and 0 against bad 3 and 2 win no comparison. Unsafe: 5 beats 4. Over both groups it would be ⅓."""
    found = groups_of(joined(load_preference_data(labelled(tmp_path), "kind")), SCORES)
    assert found == [
        {"group": "safe", "good": 2, "bad": 2, "auroc": 0.0},
        {"group": "unsafe", "good": 1, "bad": 1, "auroc": 1.0},
    ]
    assert group_note({"xs": {"groups": found}}).endswith("in: safe (xs). The probes misjudge these.")
    assert group_note({"xs": {"groups": found[1:]}}) == "Good answers score above bad ones in every group."


def test_pairs_have_groups_and_a_dropped_pair_takes_its_own_along(tmp_path: Path) -> None:
    """The scores of the two kept pairs are 3 and 1, then 0 and 5."""
    rows = [
        {"prompt": "p", "chosen": "a", "rejected": "b", "kind": 1},
        {"prompt": "q", "chosen": "a", "rejected": "a", "kind": 2},
        {"prompt": "r", "chosen": "a", "rejected": "b", "kind": 3},
    ]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = joined(load_preference_data(str(tmp_path / "pairs.jsonl"), "kind"))
    assert found.groups == ["1", "3"] and found.n_dropped == 1
    assert [each["auroc"] for each in groups_of(found, SCORES)] == [1.0, 0.0]


@pytest.mark.parametrize(("changed", "last"), [({"label": True}, ("unsafe", None)), ({"kind": None}, ("—", None))])
def test_a_group_without_both_kinds_has_no_auroc(
    tmp_path: Path, changed: dict[str, Any], last: tuple[str, None]
) -> None:
    found = groups_of(joined(load_preference_data(labelled(tmp_path, **changed), "kind")), SCORES)
    assert last in [(each["group"], each["auroc"]) for each in found]


@pytest.mark.parametrize(
    "elsewhere", [{}, {"xs": {"groups": []}}, {"xs": {"groups": [{"group": "safe", "auroc": None}]}}]
)
def test_it_is_said_that_it_was_not_measured(elsewhere: dict[str, Any]) -> None:
    assert "was not measured" in group_note(elsewhere) and "--eval_group_column" in group_note(elsewhere)
