"""The protocol of an engine with a loop of its own, such as vLLM, in which rows join and leave between two passes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from torch import Tensor, device

from frugalign.engines.engine import Capabilities

if TYPE_CHECKING:
    from frugalign.base.ledger import Ledger
    from frugalign.decoding.chooser import Chooser
    from frugalign.decoding.loop import Generation, LoopOptions, SamplingParams


@runtime_checkable
class LoopingEngine(Protocol):
    """`name`, `capabilities`, `device` and `output_embeddings` are those of an `Engine`."""

    @property
    def name(self) -> str: ...

    @property
    def capabilities(self) -> Capabilities: ...

    @property
    def device(self) -> device: ...

    def output_embeddings(self) -> Tensor: ...

    def complete(
        self,
        prompt_ids: Sequence[Sequence[int]],
        keys: Tensor,
        guide: Chooser,
        params: SamplingParams,
        options: LoopOptions,
        ledger: Ledger | None,
    ) -> Generation:
        """Complete every prompt as `loop.generate` does. How many rows run at once is up to the engine."""
        ...
