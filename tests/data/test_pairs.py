"""Preference pairs: equal answers are left out, and what is evaluated on is not trained on."""

import json
from pathlib import Path
from typing import Any

import pytest

from frugalign.base.errors import FrugalignError
from frugalign.data.pairs import preference_pairs


def write(folder: Path, **splits: list[dict[str, Any]]) -> str:
    folder.mkdir(exist_ok=True)
    for name, rows in splits.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(folder)


def pairs(*prompts: str, **columns: Any) -> list[dict[str, Any]]:
    return [{"prompt": prompt, "chosen": f"yes, {prompt}", "rejected": f"no, {prompt}"} | columns for prompt in prompts]


def test_equal_answers_are_left_out_and_only_named_columns_are_kept(tmp_path: Path) -> None:
    rows = [*pairs("a", "b"), {"prompt": "c", "chosen": "same", "rejected": "same"}]
    name = write(tmp_path / "data", train=[row | {"confidence": 0.7, "source": "web"} for row in rows])
    train, held_out, about = preference_pairs(name, weights=True)
    assert train["prompt"] == ["a", "b"] and held_out is None
    assert train.column_names == ["prompt", "chosen", "rejected", "confidence"]
    assert about["held_out_fraction"] == 0.0


def test_pairs_to_evaluate_on_are_a_split_or_a_tenth_of_the_prompts(tmp_path: Path) -> None:
    many = pairs(*(f"p{number}" for number in range(20)))
    train, held_out, about = preference_pairs(write(tmp_path / "one", train=many), hold_out=True)
    assert held_out is not None and (len(train), len(held_out)) == (18, 2) and about["held_out_fraction"] == 0.1
    assert not set(train["prompt"]) & set(held_out["prompt"])
    both = write(tmp_path / "two", train=many, test=pairs("x"), validation=pairs("y"))
    train, held_out, about = preference_pairs(both, hold_out=True)
    assert (
        held_out is not None and (len(train), held_out["prompt"]) == (20, ["y"]) and about["held_out_fraction"] == 0.0
    )


def test_a_split_without_two_different_answers_is_an_error(tmp_path: Path) -> None:
    name = write(tmp_path / "data", train=[{"prompt": "c", "chosen": "same", "rejected": "same"}])
    with pytest.raises(FrugalignError, match=r"The split train of .* holds no pair of two different answers"):
        preference_pairs(name)
