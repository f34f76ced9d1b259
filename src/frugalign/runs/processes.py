"""Split rows over processes, gather their results, and add up their counts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from accelerate import PartialState
from accelerate.utils import gather_object

from frugalign.base.ledger import Ledger


def local_rows(size: int) -> list[int]:
    """The row numbers below `size` that this process works on."""
    state = PartialState()
    return list(range(size))[state.process_index :: state.num_processes]


def gather_rows(rows: list[Any]) -> list[Any]:
    """The rows of all processes, sorted by their first entry."""
    return sorted(gather_object(rows), key=lambda row: row[0])


def mean_over_processes(sums: Mapping[str, float], size: float) -> dict[str, float]:
    """Means over all processes' rows, from the sums over the `size` rows of each. A process may have none."""
    every = gather_object([(dict(sums), size)])
    names = list(dict.fromkeys(name for found, _ in every for name in found))
    total = sum(number for _, number in every)
    return {name: sum(found.get(name, 0.0) for found, _ in every) / total for name in names}


def add_all_counts(ledger: Ledger, mine: Ledger) -> None:
    """Add the counts of all processes' ledgers `mine` to `ledger`."""
    for tokens, generated, calls in gather_object([(mine.lm_forward_tokens, mine.generated_tokens, mine.reward_calls)]):
        ledger.count(tokens, generated, calls)
