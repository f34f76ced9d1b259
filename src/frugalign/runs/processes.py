"""Work that several processes split by rows, and the sum of what each of them counted."""

from __future__ import annotations

from typing import Any

from accelerate import PartialState
from accelerate.utils import gather_object

from frugalign.base.ledger import Ledger


def my_rows(size: int) -> list[int]:
    """The rows of `size` that are this process's."""
    state = PartialState()
    return list(range(size))[state.process_index :: state.num_processes]


def shared(rows: list[Any]) -> list[Any]:
    """The rows of all processes, in the order of their first entries."""
    return sorted(gather_object(rows), key=lambda row: row[0])


def count_all(ledger: Ledger, mine: Ledger) -> None:
    """Add what all processes counted."""
    for tokens, generated, calls in gather_object([(mine.lm_forward_tokens, mine.generated_tokens, mine.reward_calls)]):
        ledger.count(tokens, generated, calls)
