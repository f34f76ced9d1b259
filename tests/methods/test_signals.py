"""Which signal a data set is, by its columns and by what is given beside it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from frugalign.base.errors import FrugalignError
from frugalign.methods.signals import is_stored, signal_in, signal_of

PAIRS, ANSWERS, PROMPTS = ("prompt", "chosen", "rejected"), ("prompt", "completion"), ("prompt",)


@pytest.mark.parametrize(
    ("columns", "alone", "with_reward", "with_teacher"),
    [
        (PAIRS, "pairs", "pairs", "teacher"),
        (PAIRS[1:], "pairs", "pairs", "teacher"),
        (ANSWERS, "demonstrations", None, "teacher"),
        ((*ANSWERS, "label"), "demonstrations", None, "teacher"),
        (PROMPTS, None, None, "teacher"),
    ],
)
def test_it_follows_from_the_columns(
    columns: tuple[str, ...], alone: str | None, with_reward: str | None, with_teacher: str, tmp_path: Path
) -> None:
    """The command, which is given options, decides alike."""
    assert signal_in(columns, has_teacher=False) == alone
    assert signal_in(columns, has_teacher=False, has_reward=True) == with_reward
    for reward in (False, True):
        assert signal_in(columns, has_teacher=True, has_reward=reward) == with_teacher
    file = tmp_path / "data.jsonl"
    file.write_text(json.dumps({name: True if name == "label" else "a" for name in columns}))
    given: dict[str, Any] = {"dataset_name": str(file)}
    assert is_stored(given) is (alone is not None)
    assert is_stored(given | {"reward": "r"}) is (with_reward is not None)
    assert is_stored(given | {"teacher": "t"}) and is_stored(given | {"principles": "p", "reward": "r"})


def test_what_teaches_nothing_without_a_reward_says_so() -> None:
    with pytest.raises(FrugalignError, match=r"^D holds prompts alone, which teach nothing by themselves: give reward"):
        signal_of(PROMPTS, has_teacher=False, name="D")
    with pytest.raises(FrugalignError, match=r"^D labels single answers as good or bad"):
        signal_of((*ANSWERS, "label"), has_teacher=False, name="D")
    assert signal_of((*ANSWERS, "label"), has_teacher=True) == "teacher"
    assert signal_of((*PAIRS, "label"), has_teacher=False) == "pairs"
