"""The protocol `Engine`: what the decoding loop needs from a runtime of language models, independent of any library.

An engine feeds rows of tokens. For each row it returns the input of the LM head and the logits. How it stores a row
is up to the engine: a KV cache in transformers, a sequence slot in llama.cpp, a resubmitted prompt behind prefix
caching in vLLM. `Capabilities` flags what it cannot do. The loop works around a missing capability, or raises an
error.

To add an engine, implement `Engine` and `Sequences`. `tests/engines/table_engine.py` is a complete example in eighty
lines.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor, device

if TYPE_CHECKING:
    from frugalign.engines.sentences import SentenceEnds


@dataclass(frozen=True)
class Capabilities:
    """What an engine can do beyond `prefill` and `step`.

    `gives_hidden`: the LM head's input, which a proxy reads. `gives_whole_vocabulary`: logits of every token. Without
    it, unknown logits are −inf and only greedy decoding works. `gives_layers`: hidden states of chosen layers, which
    state rewards read. `can_select`: finished rows can leave a batch. Without it, they are fed until the last row
    ends. `can_expand`: a row's cache can be copied, for lookahead, shared prefixes and several rows of one prompt. `max_rows`: the maximum batch
    size, or None.
    """

    gives_hidden: bool = True
    gives_whole_vocabulary: bool = True
    gives_layers: bool = True
    can_select: bool = True
    can_expand: bool = True
    max_rows: int | None = None


@dataclass
class StepOutput:
    """Outputs at the last position of every row, all float32.

    `hidden [B, D]`: the LM head's input (`[B, 0]` without `gives_hidden`). `logits [B, V]`: after the model's own
    scaling and soft-capping. `layers [B, n, D]`: the requested layers, or None.
    """

    hidden: Tensor
    logits: Tensor
    layers: Tensor | None = None


class Sequences(Protocol):
    """Rows in progress, with the engine's state for them."""

    def step(self, tokens: Tensor, layers: Sequence[int] = ()) -> StepOutput:
        """Append `tokens [B]`, one per row. `layers`: indices into Hugging Face's `hidden_states`."""
        ...

    def select(self, rows: Tensor) -> None:
        """Keep only these rows, int64 `[b]`, in this order (`can_select`). A row may come several times (`can_expand`)."""
        ...

    def join(self, other: Any) -> bool:
        """Append the rows of `other`, from the same engine, after these. False if this engine keeps them apart; then
        neither changes."""
        ...

    def look_ahead(self, candidates: Tensor) -> Tensor:
        """Hidden states `[B, K, D]` after each of `candidates [B, K]`. The rows do not change (`can_expand`)."""
        ...


class Engine(Protocol):
    """Runs one frozen language model."""

    @property
    def name(self) -> str:
        """The engine's or model's name in error messages."""
        ...

    @property
    def capabilities(self) -> Capabilities: ...

    @property
    def device(self) -> device:
        """The device of inputs and outputs."""
        ...

    @property
    def end_token_ids(self) -> tuple[int, ...]:
        """Every token that ends a completion."""
        ...

    @property
    def sentence_ends(self) -> SentenceEnds:
        """The tokens that end a sentence; a state reward reads the last one (`gives_layers`)."""
        ...

    @property
    def context_length(self) -> int | None:
        """The maximum length of a row, or None if unknown."""
        ...

    def running(self) -> AbstractContextManager[None]:
        """A context that encloses every call that feeds tokens: hooks, evaluation mode, a connection. It may be
        nested."""
        ...

    def prefill(self, rows: Sequence[Sequence[int]], prefix: Any = None) -> tuple[Sequences, StepOutput]:
        """Start rows of token ids, none empty.

        `prefix`: the result of `prefill_prefix`. Every row begins with its tokens, which are not fed again.
        """
        ...

    def prefill_prefix(self, tokens: Sequence[int], longest: int) -> Any | None:
        """Feed a common prefix of rows of at most `longest` tokens (`can_expand`). None if the model cannot resume
        from it."""
        ...

    def output_embeddings(self) -> Tensor:
        """The rows of the LM head, `[V, D]` in any floating dtype. A proxy computes its keys from them."""
        ...

    def weights_id(self) -> str:
        """A string that changes with the weights, so that saved work is never resumed with another model."""
        ...
