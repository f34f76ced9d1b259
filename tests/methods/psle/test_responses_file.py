"""The file that a round is inspected and edited by."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.methods.psle.scored_responses import NAN, SCALE, SMALL, TAU, WIDE, config, scored

from frugalign.base.errors import FrugalignError
from frugalign.data import load_splits
from frugalign.data.groups import Groups, groups_from_dataset, pair_groups, read_groups
from frugalign.methods.psle.responses import (
    Round,
    ScoredResponses,
    assign_branches,
    read_round,
    save_round,
)

# -- the file -------------------------------------------------------------------------------------------------------------


def same(one: Round, other: Round) -> bool:
    """All fields equal, an unknown reward equal to an unknown reward."""
    ours, theirs = one.scored, other.scored
    return (
        replace(ours, rewards=theirs.rewards) == theirs
        and ours.rewards.dtype == theirs.rewards.dtype
        and torch.equal(ours.rewards.nan_to_num(7e77), theirs.rewards.nan_to_num(7e77))
        and one.branches == other.branches
        and torch.equal(one.weights, other.weights)
    )


@pytest.mark.parametrize("given", [SMALL, WIDE], ids=["k=1", "k=2"])
@pytest.mark.parametrize("method", ["psle", "dpo", "raft"])
def test_a_file_gives_back_what_was_written(given: ScoredResponses, method: str, tmp_path: Path) -> None:
    """To the last bit, with texts that a careless reader would break at, and prompts of both kinds."""
    completions = [["a\u2028b\x85c\nd", *group[1:]] for group in given.completions]
    prompts = [[{"role": "user", "content": "ü"}], *given.prompts[1:]]
    rewards = torch.where(given.rewards == 1, 1 / 3, given.rewards)
    given = replace(given, completions=completions, prompts=prompts, rewards=rewards)
    done = assign_branches(given, config(method=method), TAU, SCALE)
    save_round(done, tmp_path / "responses.jsonl")
    assert same(read_round(tmp_path / "responses.jsonl"), done)
    assert '"content": "ü"' in (tmp_path / "responses.jsonl").read_text(encoding="utf-8"), "to be read by people"


def test_a_line_of_the_file_can_be_read(tmp_path: Path) -> None:
    save_round(assign_branches(WIDE, config(method="dpo"), TAU, SCALE), tmp_path / "responses.jsonl")
    lines = (tmp_path / "responses.jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads(lines[1]) == {
        "row": 10,
        "prompt": "prompt 1",
        "completions": ["1.0", "1.1", "1.2", "1.3"],
        "rewards": [1.0, 0.0, None, 2.0],
        "branches": ["unscored", "ranked"],
        "weights": [0.0, 1.0, 0.0, 1.0],
        "by_reward": {"one": [1.0, 0.0, None, 2.0]},
        "completion_ids": [[5], [6], [7], [8]],
    }


def test_the_file_is_groups_with_their_rewards(tmp_path: Path) -> None:
    """As `frugalign rerank` reads it, by its path as by the name of a data set: 3 goes with 0 and 1 with 2, best with worst."""
    path = tmp_path / "responses.jsonl"
    save_round(assign_branches(scored([[0.0, 3.0, 1.0, 2.0]] * 2), config(), TAU, SCALE), path)
    (rows,) = load_splits(str(path), kind="prompt-only").values()
    for found in (read_groups(path), groups_from_dataset(rows, str(path))):
        assert found == Groups(
            ["prompt 0", "prompt 1"],
            [["0.0", "0.1", "0.2", "0.3"], ["1.0", "1.1", "1.2", "1.3"]],
            [[[5], [6], [7], [8]]] * 2,
            [[0.0, 3.0, 1.0, 2.0]] * 2,
        )
        pairs, _ = pair_groups(found)
        assert [(row["chosen"], row["rejected"]) for row in pairs][:2] == [("0.1", "0.0"), ("0.3", "0.2")]


def test_with_a_reward_missing_the_file_is_groups_that_are_still_to_be_ranked(tmp_path: Path) -> None:
    """The responses are all there; rewards that not every response has cannot rank them."""
    path = tmp_path / "responses.jsonl"
    save_round(assign_branches(WIDE, config(), TAU, SCALE), path)
    (rows,) = load_splits(str(path), kind="prompt-only").values()
    for found in (read_groups(path), groups_from_dataset(rows, str(path))):
        assert found == Groups(WIDE.prompts, WIDE.completions, WIDE.completion_ids, None)


def rewrite(path: Path, line: int, edit: Callable[[dict[str, Any]], Any]) -> None:
    rows = [json.loads(text) for text in path.read_text(encoding="utf-8").splitlines()]
    rows[line] = edit(rows[line])
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def test_a_person_may_change_branches_and_weights_and_take_lines_out(tmp_path: Path) -> None:
    path = tmp_path / "responses.jsonl"
    save_round(assign_branches(SMALL, config(weighting="none"), TAU, SCALE), path)
    rewrite(path, 1, lambda line: line | {"branches": ["dropped"], "weights": [0, 2.5]})
    lines = path.read_text(encoding="utf-8").splitlines()
    path.write_text("\n\n".join([*lines[:2], *lines[3:]]), encoding="utf-8")  # with empty lines and no last end of line
    found = read_round(path)
    assert found.scored.rows == [0, 10, 30, 40]
    assert found.counts() == {"ranked": 1, "imitated": 1, "dropped": 1, "unscored": 1}
    assert found.weights[1].tolist() == [0, 2.5]
    # The rewards by name are for the reader alone: a file may come without.
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line]
    rows = [{name: value for name, value in row.items() if name != "by_reward"} for row in rows]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    assert same(read_round(path), replace(found, scored=replace(found.scored, by_name={})))


@pytest.mark.parametrize(
    "edit",
    [
        lambda line: [line],
        lambda line: "text",
        lambda line: None,
        lambda line: {name: value for name, value in line.items() if name != "completions"},
        lambda line: {name: value for name, value in line.items() if name != "prompt"},
        lambda line: {name: value for name, value in line.items() if name != "row"},
        lambda line: {name: value for name, value in line.items() if name != "by_reward"},
        lambda line: line | {"completions": line["completions"][:3]},
        lambda line: line | {"completions": [], "completion_ids": [], "rewards": [], "weights": [], "branches": []},
        lambda line: line | {"completion_ids": line["completion_ids"][:3]},
        lambda line: line | {"completion_ids": [[5], [6], [], [8]]},
        lambda line: line | {"completion_ids": [5, 6, 7, 8]},
        lambda line: line | {"completion_ids": [[5], [6], ["seven"], [8]]},
        lambda line: line | {"rewards": [0.0]},
        lambda line: line | {"rewards": [0.0, 1.0, "high", 2.0]},
        lambda line: line | {"rewards": [0.0, 1.0, [2.0], 2.0]},
        lambda line: line | {"rewards": None},
        lambda line: line | {"weights": [1.0] * 5},
        lambda line: line | {"weights": [1.0, None, 1.0, 1.0]},
        lambda line: line | {"weights": [1.0, -1.0, 1.0, 1.0]},
        lambda line: line | {"weights": [1.0, NAN, 1.0, 1.0]},
        lambda line: line | {"weights": [1.0, math.inf, 1.0, 1.0]},
        lambda line: line | {"branches": ["ranked"]},
        lambda line: line | {"branches": ["ranked", "liked"]},
        lambda line: line | {"branches": [["ranked"], "ranked"]},
        lambda line: line | {"by_reward": ["one"]},
        lambda line: line | {"by_reward": {"two": [1.0] * 4}},
        lambda line: line | {"row": "third"},
    ],
)
def test_an_edited_line_that_does_not_hold_together_is_named(edit: Callable[[Any], Any], tmp_path: Path) -> None:
    path = tmp_path / "responses.jsonl"
    save_round(assign_branches(WIDE, config(), TAU, SCALE), path)
    rewrite(path, 1, edit)
    with pytest.raises(FrugalignError) as raised:
        read_round(path)
    sentence = f"{path}, line 2 is not a prompt with its responses, rewards, weights and branches."
    assert str(raised.value) == sentence


@pytest.mark.parametrize("text", [b'{"row": 0', b"\xff\xfe", '{"prompt": "ü"'.encode("latin-1")])
def test_a_broken_line_is_named_by_its_place_in_the_file(text: bytes, tmp_path: Path) -> None:
    """Empty lines count, as an editor counts them."""
    path = tmp_path / "responses.jsonl"
    save_round(assign_branches(SMALL, config(), TAU, SCALE), path)
    first = path.read_bytes().split(b"\n")[0]
    path.write_bytes(first + b"\n\n" + text + b"\n")
    with pytest.raises(
        FrugalignError, match=r"line 3 is not a prompt with its responses, rewards, weights and branches\.$"
    ):
        read_round(path)


def test_a_file_without_lines_or_with_groups_of_two_sizes(tmp_path: Path) -> None:
    path = tmp_path / "responses.jsonl"
    path.write_text("\n")
    with pytest.raises(FrugalignError, match="holds no responses, or not as many for every prompt"):
        read_round(path)
    save_round(assign_branches(SMALL, config(), TAU, SCALE), path)
    text = path.read_text(encoding="utf-8")
    save_round(assign_branches(WIDE, config(), TAU, SCALE), path)
    path.write_text(path.read_text(encoding="utf-8") + text, encoding="utf-8")
    with pytest.raises(FrugalignError, match="holds no responses, or not as many for every prompt"):
        read_round(path)


def test_without_a_weight_of_the_demonstrations_they_are_dropped() -> None:
    """η = 0 leaves them no gradient, so they are not run and do not count as used: what is left is rejection."""
    found = assign_branches(SMALL, config(sft_weight=0.0), TAU, SCALE)
    other = assign_branches(SMALL, config(method="rejection"), TAU, SCALE)
    assert found.branches == other.branches and found.weights.tolist() == other.weights.tolist()
    assert found.counts()["dropped"] == 3
