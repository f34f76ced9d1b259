"""Preference data: pairs and labels, equal answers kept once, implicit prompts, and what is no such data."""

import json
from pathlib import Path
from typing import Any

import pytest

from frugalign.base.errors import FrugalignError
from frugalign.data.labelled import load_preference_data


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_pairs_share_their_answers(tmp_path: Path) -> None:
    """Three answers to one prompt in three pairs: three rows; a pair of equal texts is dropped and counted."""
    pairs = [("a", "b"), ("b", "c"), ("a", "c"), ("a", "a")]
    rows = [{"prompt": "p", "chosen": x, "rejected": y} for x, y in pairs] + [
        {"prompt": "q", "chosen": "a", "rejected": "b"}
    ]
    found = load_preference_data(write(tmp_path / "pairs.jsonl", rows))["train"]
    assert found.answers == ["a", "b", "c", "a", "b"] and found.prompts == ["p", "p", "p", "q", "q"]
    assert found.pairs == [(0, 1), (1, 2), (0, 2), (3, 4)] and found.n_dropped == 1 and len(found) == 4
    assert [found.prompt_of(example) for example in range(4)] == ["p", "p", "p", "q"]


def test_labels_and_prompts_within_the_answers(tmp_path: Path) -> None:
    rows = [{"prompt": "p", "completion": text, "label": text == "good"} for text in ("good", "bad")]
    found = load_preference_data(write(tmp_path / "labels.jsonl", rows))["train"]
    assert found.labels == [(0, 1.0), (1, 0.0)] and not found.is_paired
    turn = {"role": "user", "content": "p"}
    row = {name: [turn, {"role": "assistant", "content": name}] for name in ("chosen", "rejected")}
    found = load_preference_data(write(tmp_path / "implicit.jsonl", [row]))["train"]
    assert found.prompts == [[turn], [turn]] and found.answers[0] == [{"role": "assistant", "content": "chosen"}]
    row = {"chosen": "Human: Hi. Robot: Hello you.", "rejected": "Human: Hi. Robot: Help."}
    found = load_preference_data(write(tmp_path / "text.jsonl", [row]))["train"]
    assert found.prompts[0] == "Human: Hi. Robot: " and found.answers == ["Hello you.", "Help."]


def test_what_is_not_judged_is_refused(tmp_path: Path) -> None:
    for name, rows in {
        "prompts": [{"prompt": "p"}],
        "equal": [{"prompt": "p", "chosen": "a", "rejected": "a"}],
        "broken": [{"prompt": "p", "chosen": "a", "rejected": ""}],
    }.items():
        with pytest.raises(FrugalignError, match=r"no preference data|no pair of two different|`rejected` is empty"):
            load_preference_data(write(tmp_path / f"{name}.jsonl", rows))
