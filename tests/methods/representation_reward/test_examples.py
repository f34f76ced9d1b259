"""Examples by split: what is tested on is not trained on, by name and by content, and shared prompts are counted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset, DatasetDict

from frugalign.data.labelled import load_preference_data
from frugalign.methods.representation_reward.entry import headline
from frugalign.methods.representation_reward.examples import joined, read_examples, shared_prompts
from frugalign.methods.representation_reward.options import RewardOptions


def rows(start: int, stop: int) -> list[dict[str, str]]:
    return [{"prompt": f"question {i}", "chosen": f"good {i}", "rejected": f"bad {i}"} for i in range(start, stop)]


def numbers(preferences: Any, examples: list[int]) -> set[int]:
    return {int(preferences.prompt_of(example).split()[-1]) for example in examples}


def test_a_split_called_test_prefs_is_not_trained_on(tmp_path: Path) -> None:
    parts = {"train_prefs": rows(0, 30), "test_prefs": rows(30, 40)}
    DatasetDict({name: Dataset.from_list(part) for name, part in parts.items()}).save_to_disk(tmp_path / "saved")
    preferences, split = read_examples(str(tmp_path / "saved"), RewardOptions())
    assert numbers(preferences, split.test) == set(range(30, 40))
    trained = numbers(preferences, [*split.train, *split.validation])
    assert trained == set(range(30)) and not set(split.train) & set(split.validation)
    assert shared_prompts(preferences, split) == {"trained_on": 0, "test": 10}


def test_prompts_that_differ_in_form_only_stay_on_one_side(tmp_path: Path) -> None:
    twice = [row | {"prompt": text} for row in rows(0, 20) for text in (row["prompt"], f" {row['prompt'].upper()}\n")]
    (tmp_path / "d.jsonl").write_text("".join(json.dumps(row) + "\n" for row in twice))
    preferences, split = read_examples(str(tmp_path / "d.jsonl"), RewardOptions())
    sides = [numbers(preferences, part) for part in (split.train, split.validation, split.test)]
    assert sum(map(len, sides)) == 20 and set.union(*sides) == set(range(20))


@pytest.mark.parametrize(
    ("shared", "said"),
    [
        (6, "on 6 examples (6 of 6 test prompts are also trained on); shuffled"),
        (0, "on 6 examples of unseen prompts; shuffled"),
    ],
)
def test_prompts_are_called_unseen_only_if_they_are(tmp_path: Path, shared: int, said: str) -> None:
    for name, part in (("train", rows(0, 20)), ("test", rows(20 - shared, 26 - shared))):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    preferences, split = read_examples(str(tmp_path), RewardOptions())
    other = joined(load_preference_data(str(tmp_path)))
    accuracy = {"accuracy": {"mean": 1.0, "ci_low": 1.0, "ci_high": 1.0, "n": 6}}
    report = {
        "test": accuracy,
        "shuffled": {"mean": 0.5},
        "length_only": 0.5,
        "bag_of_words": 0.5,
        "shared_prompts": shared_prompts(preferences, split),
        "elsewhere": {"itself": accuracy | {"shared_prompts": shared_prompts(preferences, split, other), "groups": []}},
        "group_note": "Not measured.",
    }
    first, second, last = headline(report)
    assert last == "Not measured."
    assert said in first and ("unseen" in first) is not bool(shared)
    assert second == f"On itself: 100.0 % (20 of {26 - shared} test prompts are also trained on)."
