"""What acts inside vLLM's sampler. It is imported where vLLM is installed, by vLLM.

In every step vLLM gives the logits of some rows, and the wrapped logits layer (`frugalign_runtime.vllm`) the states they came from. The
chooser picks a token for each row of the run, from the noise of its position. All other tokens of the row are ruled out.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor
from vllm.v1.worker.gpu.sample.logits_processor import LogitsProcessor

from frugalign.base.errors import FrugalignError
from frugalign.base.quantities import KL_PARTS
from frugalign.decoding.chooser import Chooser
from frugalign.decoding.loop import Observer, SamplingParams, Step
from frugalign.decoding.noise import Noise
from frugalign_runtime.vllm import CAPTURED, capture

ROW = "frugalign_row"
"""In a request's `extra_args`: which row of the run it is."""
_RUNS: list[Run] = []
"""The run in progress, or none."""


class Run:
    """The rows of one call of `complete`, and what was chosen for them."""

    def __init__(
        self, guide: Chooser, keys: Tensor, params: SamplingParams, observer: Observer | None, n_rows: int
    ) -> None:
        self._guide, self._keys, self._do_sample, self._observer = guide, keys, params.do_sample, observer
        self._tokens = torch.full((n_rows, params.max_new_tokens), -1, device=keys.device)
        self._n_chosen = 0
        names = KL_PARTS if params.do_sample else ()
        self._kl = {name: torch.zeros(n_rows, dtype=torch.float64, device=keys.device) for name in names}

    def choose(self, rows: Tensor, position: Tensor, hidden: Tensor, logits: Tensor) -> Tensor:
        """The next tokens `[B]` of `rows [B]`, each at its `position [B]` of the completion."""
        noise = Noise(self._keys[rows], position)
        emission = self._guide.emit(hidden.float(), logits.float(), noise, do_sample=self._do_sample)
        self._tokens[rows, position] = emission.token
        self._n_chosen += len(rows)
        for name, total in self._kl.items():
            part: Tensor | None = getattr(emission, name)
            if part is not None:
                total[rows] += part.double()
        if self._observer is not None:
            self._observer(Step(position, rows, hidden, emission))
        return emission.token

    def finish(self, completions: list[list[int]]) -> dict[str, Tensor]:
        """The KL parts `[n]` of `Generation`.

        Raises:
            FrugalignError: these are not the tokens that were chosen, so what was recorded belongs to other ones.
        """
        chosen = [row[: len(ids)] for row, ids in zip(self._tokens.tolist(), completions, strict=True)]
        if chosen != completions or self._n_chosen != sum(map(len, completions)):
            raise FrugalignError(
                "vLLM took other tokens than were chosen for it, possibly by a setting in vllm_args: leave it out, or use --ray_engine transformers."
            )
        return {name: total.cpu() for name, total in self._kl.items()}


@contextmanager
def choosing(run: Run) -> Iterator[None]:
    """Inside the block, the run chooses the tokens of its rows."""
    _RUNS.append(run)
    try:
        yield
    finally:
        _RUNS.clear()


class KeyedSampler(LogitsProcessor):  # type: ignore[misc]
    """A custom logits processor of vLLM's second model runner. It keeps each request's row by its slot."""

    def __init__(self, vllm_config: Any, req_states: Any) -> None:
        """
        Args:
            req_states: lengths by slot. They are written in place, so reading gives those of now.
        """
        self._lengths = req_states
        self._row = np.full(req_states.max_num_reqs, -1)
        capture()

    def add_request(self, req_idx: int, sampling_params: Any) -> bool:
        """A request comes to a slot, or comes back after it was preempted. Returns whether it is one of a run's rows."""
        self._row[req_idx] = (sampling_params.extra_args or {}).get(ROW, -1)
        return bool(self._row[req_idx] >= 0)

    def apply(self, logits: Tensor, ctx: Any) -> Tensor:
        """`logits [rows, V]`, with 0 at the chosen token and −inf at all others in the rows of the run.

        Raises:
            FrugalignError: hidden states are not those of these rows, as in batch-sharded sampling.
        """
        slots = ctx.idx_mapping_np
        length = ctx.seq_lens_upper_bound_np[: len(slots)]
        # Logits after a part of what is to be fed, as in chunked prefill, are read by nobody.
        is_fed = length >= self._lengths.prefill_len.np[slots]
        places = np.flatnonzero((self._row[slots] >= 0) & is_fed)
        if not len(places) or not _RUNS:
            return logits
        hidden = CAPTURED.hidden
        if len(slots) != len(logits) or hidden is None or len(hidden) != len(logits):
            raise FrugalignError(
                f"vLLM computed {len(logits)} rows of logits for {len(slots)} requests from {0 if hidden is None else len(hidden)} hidden states, "
                "so a proxy cannot choose their tokens: switch batch-sharded sampling and drafts off in vllm_args."
            )
        slots, length = slots[places], length[places]
        rows, position, where = (
            torch.from_numpy(np.asarray(each, dtype=np.int64)).to(logits.device)
            for each in (self._row[slots], length - self._lengths.prompt_len.np[slots], places)
        )
        token = _RUNS[0].choose(rows, position, hidden[where], logits[where])
        logits[where] = -math.inf
        logits[where, token] = 0.0
        return logits
