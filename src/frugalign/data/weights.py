"""Numbers that rows may have of their own: the `weight` of a row, and the `confidence` in the label of a pair."""

from __future__ import annotations

import math
from array import array
from typing import TYPE_CHECKING, Any

from frugalign.base.errors import FrugalignError
from frugalign.base.wording import shown
from frugalign.data.row_parts import each

if TYPE_CHECKING:
    from datasets import Dataset

WEIGHTS = ("weight", "confidence")
"""Optional columns. A missing weight is 1, and a missing confidence NaN."""


def weights_in(data: Dataset, name: str) -> array[float] | None:
    """The numbers of the column `name` of `WEIGHTS`, one per row. None if there is no such column. A number takes eight bytes.

    Raises:
        FrugalignError: a value that is no such number, naming its row.
    """
    if name not in data.column_names:
        return None
    return array("d", (_number(name, row, value) for row, value in enumerate(each(data[name]))))


def check_weights(data: Dataset) -> None:
    """Check all columns of `WEIGHTS`, before rows are left out, which changes their numbers.

    Raises:
        FrugalignError: as `weights_in`.
    """
    for name in WEIGHTS:
        weights_in(data, name)


def _number(name: str, row: int, value: Any) -> float:
    if value is None:
        return 1.0 if name == "weight" else math.nan
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        if name == "weight" and 0 <= value < math.inf:
            return float(value)
        if name == "confidence" and (0 <= value <= 1 or math.isnan(value)):
            return float(value)
    allowed = "a finite number of at least 0" if name == "weight" else "a number in [0, 1]"
    raise FrugalignError(f"Row {row + 1} has the {name} {shown(value)}; it must be {allowed}.")
