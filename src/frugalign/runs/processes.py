"""Split rows over processes, gather their results, and add up their counts.

Processes that hold a model together (`engines.sharding`) work on the same rows, and their results count once.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object
from torch import Tensor

from frugalign.base.ledger import Ledger
from frugalign.engines.sharding import meet, replica
from frugalign.options.launcher import several_on_cpu

T = TypeVar("T")


def this_process() -> PartialState:
    """This process among those that torchrun started."""
    return PartialState(cpu=several_on_cpu())


def is_main_process() -> bool:
    """Whether this process writes and prints."""
    return bool(this_process().is_main_process)


def local_rows(size: int) -> list[int]:
    """The row numbers below `size` that this process works on."""
    this_process()
    mine = replica()
    return list(range(size))[mine.index :: mine.number]


def gather_all(values: list[Any]) -> list[Any]:
    """The values of all processes, in their order, once for those that work on the same rows."""
    this_process()
    meet()
    found: list[Any] = gather_object(values if replica().leads else [])
    return found


def from_main(value: T) -> T:
    """The main process's value."""
    if this_process().num_processes == 1:
        return value
    meet()
    found: list[T] = broadcast_object_list([value])
    return found[0]


def gather_rows(rows: list[Any]) -> list[Any]:
    """The rows of all processes, sorted by their first entry."""
    return sorted(gather_all(rows), key=lambda row: row[0])


def mean_over_processes(sums: Mapping[str, float], size: float) -> dict[str, float]:
    """Means over all processes' rows, from the sums over the `size` rows of each. A process may have none."""
    meet()
    every = gather_object([(dict(sums), size)])
    names = list(dict.fromkeys(name for found, _ in every for name in found))
    total = sum(number for _, number in every)
    return {name: sum(found.get(name, 0.0) for found, _ in every) / total for name in names}


def sum_over_processes(accelerator: Any, values: Tensor) -> Tensor:
    """Sum over processes, in float64 so that the result does not depend on the split."""
    if accelerator.num_processes == 1:
        return values
    meet()
    mine = values if replica().leads else torch.zeros_like(values)
    summed: Tensor = accelerator.reduce(mine.double().to(accelerator.device), reduction="sum")
    return summed.to(values)


def add_all_counts(ledger: Ledger, mine: Ledger) -> None:
    """Add the counts of all processes' ledgers `mine` to `ledger`."""
    for tokens, generated, calls in gather_all([(mine.lm_forward_tokens, mine.generated_tokens, mine.reward_calls)]):
        ledger.count(tokens, generated, calls)


def share_counts(ledger: Ledger) -> None:
    """Let a ledger that has counted this process's work count that of all."""
    total = Ledger()
    add_all_counts(total, ledger)
    ledger.lm_forward_tokens, ledger.generated_tokens = total.lm_forward_tokens, total.generated_tokens
    ledger.reward_calls = total.reward_calls
