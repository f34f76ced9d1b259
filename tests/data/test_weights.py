"""The columns `weight` and `confidence`: what is missing has a default, and what is no such number is named with its row."""

import json
import math
from array import array
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

from frugalign.base.errors import FrugalignError
from frugalign.data.loading import training_prompts
from frugalign.data.pairs import preference_pairs
from frugalign.data.weights import check_weights, weights_in

NEITHER = [True, False, "0.5", "x", "", -1, -1e-9, math.inf, -math.inf, [0.5], [], {"a": 1.0}, date(2026, 1, 1)]


def one_column(name: str, *values: Any) -> Dataset:
    return Dataset.from_dict({"prompt": [str(row) for row in range(len(values))], name: list(values)})


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [("weight", value, "a finite number of at least 0") for value in [*NEITHER, math.nan]]
    + [("confidence", value, "a number in [0, 1]") for value in [*NEITHER, 2, 1 + 1e-9]],
    ids=repr,
)
def test_what_is_no_such_number_is_one_sentence_with_its_row(name: str, value: Any, allowed: str) -> None:
    for read in (lambda data: weights_in(data, name), check_weights):
        with pytest.raises(FrugalignError) as raised:
            read(one_column(name, None, value, None))
        said = str(raised.value)
        assert (
            said.startswith(f"Row 2 has the {name} ") and said.endswith(f"; it must be {allowed}.") and "\n" not in said
        )


def test_what_is_missing_has_a_default() -> None:
    assert weights_in(one_column("weight", None, 0, 2.5, 10**9), "weight") == array("d", [1.0, 0.0, 2.5, 1e9])
    found = weights_in(one_column("confidence", 0, None, math.nan, 1, 0.25), "confidence")
    assert found is not None and [found[place] for place in (0, 3, 4)] == [0.0, 1.0, 0.25]
    assert math.isnan(found[1]) and math.isnan(found[2])
    assert weights_in(one_column("weight", None, None), "weight") == array("d", [1.0, 1.0])
    assert weights_in(one_column("label", "x"), "weight") is None


def test_a_row_has_the_number_that_it_has_in_the_file(tmp_path: Path) -> None:
    """Rows that are held out or left out come later."""
    pair = {"chosen": "a", "rejected": "a"}
    rows = [{"prompt": str(row)} | pair | {"weight": row - 30} for row in range(30)]
    rows[:29] = [row | {"weight": 1} for row in rows[:29]]
    file = tmp_path / "data.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for read in (preference_pairs, training_prompts):
        with pytest.raises(FrugalignError, match="Row 30 has the weight -1;"):
            read(str(file), hold_out=True, weights=True)
    prompts, _, _ = training_prompts(str(file), hold_out=True)  # as a column for rewards, it may hold anything
    assert "weight" in prompts.column_names
