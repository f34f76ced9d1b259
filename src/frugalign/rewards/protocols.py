"""The reward protocols. They follow TRL, so a function written for its GRPOTrainer works here unchanged."""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

if TYPE_CHECKING:
    from torch import Tensor

Completion = str | list[dict[str, Any]]
"""Text, or messages if the prompt is messages."""


@runtime_checkable
class Reward(Protocol):
    """One number per completion, or None if the reward does not apply.

    All arguments are passed by keyword. `prompts` and `completions` are strings or message lists; `completion_ids`
    are token ids with the end token. The data set's other columns are lists. `trainer_state` is None outside
    training. `log_extra(column, values)` and `log_metric(name, value)` are TRL's logging functions. A function names
    the arguments it uses and takes the rest in `**kwargs`. It may be a coroutine function.
    """

    def __call__(
        self, prompts: Sequence[Any], completions: Sequence[Any], **kwargs: Any
    ) -> Sequence[float | None] | Awaitable[Sequence[float | None]]: ...


@runtime_checkable
class StateReward(Protocol):
    """A reward that reads hidden states at the completion's last token. Generation can pass on the states it has
    already computed."""

    layers: Sequence[int]
    """Indices into Hugging Face's `hidden_states`."""
    fingerprint: str
    """The model whose states it reads."""

    def score_states(self, states: Tensor) -> Tensor:
        """`states [B, layers, D]` to rewards `[B]`."""
        ...
