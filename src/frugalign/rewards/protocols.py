"""What a reward is. TRL's call, so that a function written for its GRPOTrainer works here unchanged."""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

if TYPE_CHECKING:
    from torch import Tensor

Completion = str | list[dict[str, Any]]
"""Text, or messages where the prompt is messages."""


@runtime_checkable
class Reward(Protocol):
    """One number per completion; None where the reward does not apply.

    Every argument comes by keyword: `prompts` and `completions` (strings or message lists), `completion_ids` (token
    ids, end token included), the data set's other columns as lists, `trainer_state` (None outside training), and
    TRL's two logging functions `log_extra(column, values)` and `log_metric(name, value)`. A function takes what it
    names and the rest in `**kwargs`. It may be a coroutine function.
    """

    def __call__(
        self, prompts: Sequence[Any], completions: Sequence[Any], **kwargs: Any
    ) -> Sequence[float | None] | Awaitable[Sequence[float | None]]: ...


@runtime_checkable
class StateReward(Protocol):
    """A reward that reads hidden states at the completion's last token, so that generation can hand over what it
    computed anyway."""

    layers: Sequence[int]
    """Indices into Hugging Face's `hidden_states`."""
    fingerprint: str
    """The model whose states it reads."""

    def score_states(self, states: Tensor) -> Tensor:
        """`states [B, layers, D]` to rewards `[B]`."""
        ...
