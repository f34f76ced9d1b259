"""Call rewards and check every output. An error names reward, batch and row."""

from __future__ import annotations

import asyncio
import inspect
import math
import threading
import traceback
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from frugalign.base.errors import FrugalignError
from frugalign.base.ledger import Ledger
from frugalign.base.progress import SCORED, advance
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
class CompletionBatch:
    """Completions that each reward scores in one call. Lists have one entry per row.

    `columns`: the data set's other columns. `states [B, state_layers, D]`: endpoint states from generation, passed to
    state rewards. `number`: the batch's number in error messages.
    """

    prompts: Sequence[Any]
    completions: Sequence[Any]
    completion_ids: Sequence[Sequence[int]]
    columns: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    states: Any = None
    state_layers: Sequence[int] = ()
    number: int = 0


@dataclass(frozen=True)
class TrainerHooks:
    """What TRL's call passes from the trainer: its state, and the two logging functions of `Reward`."""

    state: Any = None
    log_extra: Callable[..., None] | None = None
    log_metric: Callable[..., None] | None = None


@dataclass(frozen=True)
class _Call:
    """The keyword arguments of one call: lists have one entry per row."""

    lists: dict[str, list[Any]]
    constants: dict[str, Any]
    size: int
    number: int = 0

    @classmethod
    def of(cls, batch: CompletionBatch, hooks: TrainerHooks) -> _Call:
        lists: dict[str, list[Any]] = {
            "prompts": list(batch.prompts),
            "completions": list(batch.completions),
            "completion_ids": [list(ids) for ids in batch.completion_ids],
        }
        lists |= {name: list(values) for name, values in batch.columns.items() if name not in _RESERVED}
        constants = {
            "trainer_state": hooks.state,
            "log_extra": hooks.log_extra or _no_log,
            "log_metric": hooks.log_metric or _no_log,
        }
        if batch.states is not None:
            lists["endpoint_states"], constants["endpoint_layers"] = list(batch.states), list(batch.state_layers)
        return cls(lists, constants, len(batch.prompts), batch.number)

    def run(self, reward: NamedReward) -> Any:
        arguments = self.lists | self.constants
        if not isinstance(reward.function, StateReward):  # TRL's call has no states in it
            arguments = {name: value for name, value in arguments.items() if not name.startswith("endpoint_")}
        return reward.function(**arguments)

    def rows(self, indices: Sequence[int]) -> _Call:
        lists = {name: [values[index] for index in indices] for name, values in self.lists.items()}
        return _Call(lists, self.constants, len(indices), self.number)


class _Failure(Exception):
    """An unusable reward output: the reason, and the row if known."""

    def __init__(self, reason: str, row: int | None = None) -> None:
        super().__init__(reason)
        self.reason, self.row = reason, row


def score(
    rewards: Sequence[NamedReward],
    batch: CompletionBatch,
    *,
    weights: Sequence[float] | None = None,
    on_error: str = "raise",
    hooks: TrainerHooks | None = None,
    ledger: Ledger | None = None,
) -> Scores:
    """Rewards of a batch of completions.

    All coroutine functions are awaited together. With `on_error="skip"`, rows on which a reward fails are lost and
    counted in `n_skipped`. A failing call is repeated row by row to find them.

    Raises:
        FrugalignError: a reward raises, or returns a wrong length, NaN, infinity or a non-number (unless skipped). Or
            the weights do not fit, or two rewards have the same name.
    """
    names = [reward.name for reward in rewards]
    _check_arguments(names, weights, on_error)
    if not batch.prompts:
        return Scores([], {name: [] for name in names}, 0)
    call = _Call.of(batch, hooks or TrainerHooks())
    by_name: dict[str, list[float | None]] = {}
    failed: set[int] = set()
    for reward, output in zip(rewards, _outputs(rewards, call), strict=True):
        if ledger is not None:
            ledger.count(reward_calls=call.size)
        try:
            by_name[reward.name] = _values(output, call.size)
        except _Failure as failure:
            if on_error == "raise":
                raise _error(reward, call, failure) from failure.__cause__
            by_name[reward.name], lost = _without_failing_rows(reward, call)
            failed |= lost
    advance(SCORED, call.size)
    factors = list(weights) if weights is not None else [1.0] * len(rewards)
    total = [None if row in failed else _sum(row, by_name, names, factors) for row in range(call.size)]
    return Scores(total, by_name, len(failed))


def _check_arguments(names: Sequence[str], weights: Sequence[float] | None, on_error: str) -> None:
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise FrugalignError(f"Two rewards are called {twice!r}; give one another name: NAME={twice}.")
    if weights is not None and len(weights) != len(names):
        raise FrugalignError(f"There are {len(names)} rewards, but {len(weights)} reward_weights.")
    if on_error not in ("raise", "skip"):
        raise FrugalignError(f"reward_on_error is {on_error!r}; it must be raise or skip.")


def _sum(
    row: int, by_name: Mapping[str, list[float | None]], names: Sequence[str], weights: Sequence[float]
) -> float | None:
    terms = [
        weight * value for name, weight in zip(names, weights, strict=True) if (value := by_name[name][row]) is not None
    ]
    return math.fsum(terms) if terms else None


def _outputs(rewards: Sequence[NamedReward], call: _Call) -> list[Any]:
    """What each reward returned, or the exception that it raised."""
    outputs: list[Any] = []
    for reward in rewards:
        try:
            outputs.append(call.run(reward))
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


def _without_failing_rows(reward: NamedReward, call: _Call) -> tuple[list[float | None], set[int]]:
    """Values with None in the failing rows, and these rows. The good rows are scored together again, since a reward
    may compare rows."""
    lost = {row for row in range(call.size) if not _works(reward, call.rows([row]))}
    good = [row for row in range(call.size) if row not in lost]
    values: list[float | None] = [None] * call.size
    if good:
        try:
            scored = _values(_outputs([reward], call.rows(good))[0], len(good))
        except _Failure:
            return values, set(range(call.size))
        for row, value in zip(good, scored, strict=True):
            values[row] = value
    return values, lost


def _works(reward: NamedReward, call: _Call) -> bool:
    try:
        _values(_outputs([reward], call)[0], call.size)
    except _Failure:
        return False
    return True


def _error(reward: NamedReward, call: _Call, failure: _Failure) -> FrugalignError:
    row = failure.row
    if row is None and isinstance(failure.__cause__, Exception) and call.size > 1:
        # The call on the whole batch does not say which row failed: repeat it row by row.
        row = next((row for row in range(call.size) if not _works(reward, call.rows([row]))), None)
    elif row is None and call.size == 1:
        row = 0
    where = f"rows 0 to {call.size - 1}"
    if row is not None:
        prompt = call.lists["prompts"][row]
        text = prompt if isinstance(prompt, str) else str(prompt[-1].get("content", "")) if prompt else ""
        text = " ".join(text.split())
        where = f"row {row} (prompt {text[:60] + '…' if len(text) > 60 else text!r})"
    return FrugalignError(f"The reward {reward.name!r} {failure.reason}, in batch {call.number}, {where}.")


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
