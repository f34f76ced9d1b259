"""A whole engine without transformers, to copy from: a language model whose states and logits are looked up in two tables.

The state after some tokens is `(7 · state + token) mod S`, so it depends on all of them; the LM head reads its row of one table.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from frugalign.engines.engine import Capabilities, StepOutput
from frugalign.engines.sentences import SentenceEnds

STATES, VOCABULARY, WIDTH = 53, 23, 6


class TableEngine:
    name = "the table engine"
    device = torch.device("cpu")
    end_token_ids = (0,)
    context_length = 64
    sentence_ends = SentenceEnds(torch.arange(VOCABULARY) % 5 == 3, torch.tensor([[-1, 4, 6], [1, 2, 7]]))

    def __init__(self, **capabilities: bool | int) -> None:
        self.capabilities = Capabilities(**capabilities)  # type: ignore[arg-type]
        generator = torch.Generator().manual_seed(0)
        self.states = torch.randn(STATES, WIDTH, generator=generator)
        self.head = torch.randn(VOCABULARY, WIDTH, generator=generator)
        self.fed = 0

    @contextmanager
    def running(self) -> Iterator[None]:
        yield

    def prefill(self, rows: Sequence[Sequence[int]], prefix: int | None = None) -> tuple["TableSequences", StepOutput]:
        start, skipped = (0, 0) if prefix is None else divmod(prefix, 1000)
        sequences = TableSequences(self, torch.tensor([self.feed(start, row[skipped:]) for row in rows]))
        return sequences, self.read(sequences.state)

    def prefill_prefix(self, tokens: Sequence[int], longest: int) -> int | None:
        return 1000 * self.feed(0, tokens) + len(tokens)

    def output_embeddings(self) -> Tensor:
        return self.head

    def weights_id(self) -> str:
        return "table"

    def feed(self, state: int, tokens: Sequence[int]) -> int:
        for token in tokens:
            state = (7 * state + token) % STATES
        self.fed += len(tokens)
        return state

    def read(self, state: Tensor, layers: Sequence[int] = ()) -> StepOutput:
        hidden = self.states[state]
        return StepOutput(
            hidden, hidden @ self.head.T, torch.stack([hidden * n for n in layers], 1) if layers else None
        )


class TableSequences:
    def __init__(self, engine: TableEngine, state: Tensor) -> None:
        self.engine, self.state = engine, state

    def step(self, tokens: Tensor, layers: Sequence[int] = ()) -> StepOutput:
        self.engine.fed += len(tokens)
        self.state = (7 * self.state + tokens) % STATES
        return self.engine.read(self.state, layers)

    def select(self, rows: Tensor) -> None:
        assert self.engine.capabilities.can_select
        self.state = self.state[rows]

    def join(self, other: "TableSequences") -> bool:
        self.state = torch.cat([self.state, other.state])
        return True

    def look_ahead(self, candidates: Tensor) -> Tensor:
        self.engine.fed += candidates.numel()
        return self.engine.states[(7 * self.state[:, None] + candidates) % STATES]
