"""What the decoding loop needs of whatever runs a language model: the protocol `Engine`, and nothing of any library's models.

An engine feeds token rows and returns, a row each, the input of the LM head and the logits. How it remembers a row is its own
affair: a KV cache in transformers, a sequence slot in llama.cpp, a resubmitted prompt behind prefix caching in vLLM. What it cannot
do is a flag of `Capabilities`; the loop works around the flag, or refuses in one sentence.

To add an engine, implement `Engine` and `Sequences`. `tests/engines/table_engine.py` is a whole one in eighty lines.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, device


@dataclass(frozen=True)
class Capabilities:
    """What an engine can do beside `prefill` and `step`.

    `gives_hidden`: the LM head's input, which a proxy reads. `gives_whole_vocabulary`: logits of every token; otherwise −inf where they are
    unknown, which serves greedy decoding only. `gives_layers`: hidden states of chosen layers, which state rewards read. `can_select`:
    finished rows can leave a batch; otherwise they are fed until the last one ends. `can_expand`: a row's cache can be
    copied, for lookahead and shared prefixes. `max_rows`: the most rows of one batch, None where nothing bounds it.
    """

    gives_hidden: bool = True
    gives_whole_vocabulary: bool = True
    gives_layers: bool = True
    can_select: bool = True
    can_expand: bool = True
    max_rows: int | None = None


@dataclass
class StepOutput:
    """The last position of every row: `hidden [B, D]` float32 (the LM head's input; `[B, 0]` without `gives_hidden`), `logits [B, V]`
    float32 after the model's own scaling and soft-cap, and `layers [B, n, D]` float32 of the layers that were requested, or None."""

    hidden: Tensor
    logits: Tensor
    layers: Tensor | None = None


class Sequences(Protocol):
    """Rows in progress, with whatever the engine remembers of them."""

    def step(self, tokens: Tensor, layers: Sequence[int] = ()) -> StepOutput:
        """Append `tokens [B]`, one a row. `layers`: indices into Hugging Face's `hidden_states`."""
        ...

    def select(self, rows: Tensor) -> None:
        """Keep these rows only, int64 `[b]` in ascending order (`can_select`)."""
        ...

    def look_ahead(self, candidates: Tensor) -> Tensor:
        """Hidden states `[B, K, D]` after each of `candidates [B, K]`; the rows themselves stay as they are (`can_expand`)."""
        ...


class Engine(Protocol):
    """Runs one language model, frozen while it is used."""

    @property
    def name(self) -> str:
        """What an error calls the engine or its model."""
        ...

    @property
    def capabilities(self) -> Capabilities: ...

    @property
    def device(self) -> device:
        """Where outputs lie, and where tokens are taken."""
        ...

    @property
    def end_token_ids(self) -> tuple[int, ...]:
        """Every token that ends a completion."""
        ...

    @property
    def context_length(self) -> int | None:
        """The most positions of a row, or None where it is unknown."""
        ...

    def running(self) -> AbstractContextManager[None]:
        """Entered around every other call that feeds tokens: hooks, evaluation mode, a connection. Can be nested."""
        ...

    def prefill(self, rows: Sequence[Sequence[int]], prefix: Any = None) -> tuple[Sequences, StepOutput]:
        """Start rows of token ids, none empty. `prefix`: what `prefill_prefix` returned; every row begins with its tokens, which are not
        fed again."""
        ...

    def prefill_prefix(self, tokens: Sequence[int], longest: int) -> Any | None:
        """Feed tokens that many rows of at most `longest` tokens begin with (`can_expand`); None where this model cannot resume from them."""
        ...

    def output_embeddings(self) -> Tensor:
        """The rows of the LM head, float32 `[V, D]`: a proxy computes its keys from them."""
        ...

    def weights_id(self) -> str:
        """A string that changes with the weights, so that work on disk is never resumed with another model."""
        ...
