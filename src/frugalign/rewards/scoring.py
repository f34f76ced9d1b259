"""Call rewards and check every output. An error names reward, batch and row."""

from __future__ import annotations

import asyncio
import inspect
import math
import threading
import traceback
from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from frugalign.base.errors import FrugalignError
from frugalign.base.ledger import Ledger
from frugalign.rewards.loading import NamedReward
from frugalign.rewards.protocols import StateReward

_RESERVED = {
    "prompts",
    "completions",
    "completion_ids",
    "trainer_state",
    "log_extra",
    "log_metric",
    "prompt",
    "completion",
}


@dataclass(frozen=True)
class Scores:
    """`total[i]`: weighted sum of the rewards that apply to row i. None if none applies or one failed. `n_skipped`:
    rows lost to failing rewards."""

    total: list[float | None]
    by_name: dict[str, list[float | None]]
    n_skipped: int


@dataclass(frozen=True)
class _Batch:
    """The keyword arguments of one call: lists have one entry per row."""

    lists: dict[str, list[Any]]
    constants: dict[str, Any]
    size: int

    def call(self, reward: NamedReward) -> Any:
        arguments = self.lists | self.constants
        if not isinstance(reward.function, StateReward):  # TRL's call has no states in it
            arguments = {name: value for name, value in arguments.items() if not name.startswith("endpoint_")}
        return reward.function(**arguments)

    def rows(self, indices: Sequence[int]) -> _Batch:
        lists = {name: [values[index] for index in indices] for name, values in self.lists.items()}
        return _Batch(lists, self.constants, len(indices))


class _Failure(Exception):
    """An unusable reward output: the reason, and the row if known."""

    def __init__(self, reason: str, row: int | None = None) -> None:
        super().__init__(reason)
        self.reason, self.row = reason, row


def score(
    rewards: Sequence[NamedReward],
    *,
    prompts: Sequence[Any],
    completions: Sequence[Any],
    completion_ids: Sequence[Sequence[int]],
    columns: Mapping[str, Sequence[Any]] | None = None,
    weights: Sequence[float] | None = None,
    on_error: str = "raise",
    trainer_state: Any = None,
    log_extra: Any = None,
    log_metric: Any = None,
    ledger: Ledger | None = None,
    batch_index: int = 0,
    states: Any = None,
    state_layers: Sequence[int] = (),
) -> Scores:
    """Rewards of a batch of completions.

    `states [B, state_layers, D]`: what generation computed at the endpoints; a state reward is handed them.

    Coroutine functions are awaited, all of them together. `on_error="skip"` loses the rows on which some reward
    fails, counted in `n_skipped`; a failing call is repeated row by row to learn which those are.

    Raises:
        FrugalignError: a reward that raises, or returns a wrong length, NaN, infinity or no numbers (unless skipped);
            weights that do not fit; two rewards of one name.
    """
    names = [reward.name for reward in rewards]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise FrugalignError(f"Two rewards are called {twice!r}; give one another name: NAME={twice}.")
    if weights is not None and len(weights) != len(rewards):
        raise FrugalignError(f"There are {len(rewards)} rewards, but {len(weights)} reward_weights.")
    if on_error not in ("raise", "skip"):
        raise FrugalignError(f"reward_on_error is {on_error!r}; it must be raise or skip.")
    lists = {
        "prompts": list(prompts),
        "completions": list(completions),
        "completion_ids": [list(ids) for ids in completion_ids],
    }
    lists |= {name: list(values) for name, values in (columns or {}).items() if name not in _RESERVED}
    constants = {
        "trainer_state": trainer_state,
        "log_extra": log_extra or _no_log,
        "log_metric": log_metric or _no_log,
    }
    if states is not None:
        lists["endpoint_states"], constants["endpoint_layers"] = list(states), list(state_layers)
    batch = _Batch(lists, constants, len(prompts))
    if not prompts:
        return Scores([], {name: [] for name in names}, 0)
    by_name: dict[str, list[float | None]] = {}
    failed: set[int] = set()
    for reward, output in zip(rewards, _outputs(rewards, batch), strict=True):
        if ledger is not None:
            ledger.count(reward_calls=batch.size)
        try:
            by_name[reward.name] = _values(output, batch.size)
        except _Failure as failure:
            if on_error == "raise":
                raise _error(reward, batch, batch_index, failure) from failure.__cause__
            by_name[reward.name], lost = _without_failing_rows(reward, batch)
            failed |= lost
    factors = list(weights) if weights is not None else [1.0] * len(rewards)
    total = [None if row in failed else _sum(row, by_name, names, factors) for row in range(batch.size)]
    return Scores(total, by_name, len(failed))


def _sum(
    row: int, by_name: Mapping[str, list[float | None]], names: Sequence[str], weights: Sequence[float]
) -> float | None:
    terms = [
        weight * value for name, weight in zip(names, weights, strict=True) if (value := by_name[name][row]) is not None
    ]
    return math.fsum(terms) if terms else None


def _outputs(rewards: Sequence[NamedReward], batch: _Batch) -> list[Any]:
    """What each reward returned, or the exception that it raised."""
    outputs: list[Any] = []
    for reward in rewards:
        try:
            outputs.append(batch.call(reward))
        except Exception as error:
            outputs.append(error)
    waiting = [place for place, output in enumerate(outputs) if inspect.isawaitable(output)]
    if waiting:
        for place, output in zip(waiting, _await_all([outputs[place] for place in waiting]), strict=True):
            outputs[place] = output
    return outputs


def _values(output: Any, size: int) -> list[float | None]:
    """The output as numbers, or a `_Failure`."""
    if isinstance(output, Exception):
        raise _Failure(_what_was_raised(output)) from output
    if hasattr(output, "tolist"):  # a tensor or an array: convert it in one call
        output = output.tolist()
    if isinstance(output, (str, bytes)) or not isinstance(output, (Sequence, Mapping)) or isinstance(output, Mapping):
        raise _Failure(f"returned a {type(output).__name__}, not a list of numbers")
    if len(output) != size:
        raise _Failure(f"returned {len(output)} values for {size} completions")
    return [_number(value, row) for row, value in enumerate(output)]


def _number(value: Any, row: int) -> float | None:
    if value is None:
        return None
    if isinstance(value, (str, bytes)):
        raise _Failure(f"returned {value!r}, which is text", row)
    try:
        number = float(value)
    except Exception as error:
        raise _Failure(f"returned a {type(value).__name__}, which is not a number", row) from error
    if math.isnan(number):
        raise _Failure("returned NaN", row)
    if math.isinf(number):
        raise _Failure("returned infinity", row)
    return number


def _without_failing_rows(reward: NamedReward, batch: _Batch) -> tuple[list[float | None], set[int]]:
    """Values with None in the failing rows, and these rows. The good rows are scored together again, since a reward
    may compare rows."""
    lost = {row for row in range(batch.size) if not _works(reward, batch.rows([row]))}
    good = [row for row in range(batch.size) if row not in lost]
    values: list[float | None] = [None] * batch.size
    if good:
        try:
            scored = _values(_outputs([reward], batch.rows(good))[0], len(good))
        except _Failure:
            return values, set(range(batch.size))
        for row, value in zip(good, scored, strict=True):
            values[row] = value
    return values, lost


def _works(reward: NamedReward, batch: _Batch) -> bool:
    try:
        _values(_outputs([reward], batch)[0], batch.size)
    except _Failure:
        return False
    return True


def _error(reward: NamedReward, batch: _Batch, batch_index: int, failure: _Failure) -> FrugalignError:
    row = failure.row
    if row is None and isinstance(failure.__cause__, Exception) and batch.size > 1:
        # The call on the whole batch does not say which row failed: repeat it row by row.
        row = next((row for row in range(batch.size) if not _works(reward, batch.rows([row]))), None)
    elif row is None and batch.size == 1:
        row = 0
    where = f"rows 0 to {batch.size - 1}"
    if row is not None:
        prompt = batch.lists["prompts"][row]
        text = prompt if isinstance(prompt, str) else str(prompt[-1].get("content", "")) if prompt else ""
        text = " ".join(text.split())
        where = f"row {row} (prompt {text[:60] + '…' if len(text) > 60 else text!r})"
    return FrugalignError(f"The reward {reward.name!r} {failure.reason}, in batch {batch_index}, {where}.")


def _what_was_raised(error: Exception) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    where = f" at {frames[-1].filename}:{frames[-1].lineno}" if frames else ""
    text = " ".join(str(error).split()).rstrip(".")
    return f"raised {type(error).__name__}{f' ({text})' if text else ''}{where}"


def _no_log(*_: Any, **__: Any) -> None:
    """TRL always passes its two logging functions; outside a trainer they do nothing."""


@lru_cache(maxsize=1)
def _loop() -> asyncio.AbstractEventLoop:
    """One event loop in a separate thread. It works inside notebooks, which already run a loop. An HTTP client
    belongs to the loop it was first used in, so a reward's client stays usable from batch to batch."""
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="frugalign-rewards", daemon=True).start()
    return loop


def _await_all(waiting: Sequence[Awaitable[Any]]) -> list[Any]:
    async def gather() -> list[Any]:
        return await asyncio.gather(*waiting, return_exceptions=True)

    return asyncio.run_coroutine_threadsafe(gather(), _loop()).result()
