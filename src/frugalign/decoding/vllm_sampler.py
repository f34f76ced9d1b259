"""What acts inside vLLM's sampler. It is imported where vLLM is installed, by vLLM.

In every step vLLM gives the logits of some rows, and the wrapped logits layer (`frugalign_runtime.vllm`) the states they came from. The
chooser picks a token for each row of the run, from the noise of its position. All other tokens of the row are ruled out.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
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
Part = tuple[int, int, int]
"""A text, and the first of its tokens and the one after the last."""
_SAME = 0.01
"""Nats by which a log-probability that vLLM returns may differ from that of the logits it belongs to."""
_ACTIVE: list[Run | Reading] = []
"""What is in progress, or nothing."""


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


class Reading:
    """Texts that are fed, and who takes the states and logits of their tokens.

    vLLM computes the logits of a prompt's tokens if their log-probabilities are asked for: after the sampler has run, those of all requests of a
    step in the order of the batch, some hundreds at once. One log-probability of each text is compared with vLLM's own.
    """

    def __init__(self, texts: Sequence[Sequence[int]], take: Callable[[Sequence[Part], Tensor, Tensor], None]) -> None:
        self._texts, self._take = texts, take
        self._fed = [0] * len(texts)
        self._due: deque[Part] = deque()
        self._found: dict[int, Tensor] = {}

    def begin(self, text: int) -> None:
        """A text is fed from its first token on, possibly anew."""
        self._fed[text] = 0

    def expect(self, texts: Sequence[int], lengths: Sequence[int]) -> None:
        """In this step, these texts are fed up to these lengths."""
        for text, length in zip(texts, lengths, strict=True):
            self._due.append((text, self._fed[text], length))
            self._fed[text] = length

    def listen(self, hidden: Tensor, logits: Tensor) -> None:
        """A call of the logits layer. Those for the sampler come when nothing is due."""
        parts, place = list[Part](), 0
        while place < len(hidden) and self._due:
            text, start, end = self._due.popleft()
            stop = min(end, start + len(hidden) - place)
            if stop < end:
                self._due.appendleft((text, stop, end))
            compared = len(self._texts[text]) - 2
            if start <= compared < stop:
                scores = torch.log_softmax(logits[place + compared - start].float(), -1)
                self._found[text] = scores[self._texts[text][-1]]
            parts.append((text, start, stop))
            place += stop - start
        if parts:
            self._take(parts, hidden, logits)

    def finish(self, log_probs: Sequence[Any]) -> None:
        """
        Args:
            log_probs: what vLLM returned for each text: of every token, its log-probability by its id.

        Raises:
            FrugalignError: the logits that were taken belong to other tokens.
        """
        for text, ids in enumerate(self._texts):
            is_same = self._fed[text] == len(ids) and not self._due
            if is_same and len(ids) > 1:
                found = float(self._found.get(text, torch.tensor(math.nan)))
                is_same = abs(found - log_probs[text][-1][ids[-1]].logprob) <= _SAME
            if not is_same:
                raise FrugalignError(
                    "vLLM computed the logits of stored answers in another order than it should, possibly by a setting in vllm_args: leave it out, or use --ray_engine transformers."
                )


@contextmanager
def acting(what: Run | Reading) -> Iterator[None]:
    """Inside the block, requests with a `ROW` belong to it."""
    _ACTIVE.append(what)
    CAPTURED.listener = what.listen if isinstance(what, Reading) else None
    try:
        yield
    finally:
        _ACTIVE.clear()
        CAPTURED.listener = None


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
        row = (sampling_params.extra_args or {}).get(ROW, -1)
        self._row[req_idx] = row
        if row >= 0 and _ACTIVE and isinstance(_ACTIVE[0], Reading):
            _ACTIVE[0].begin(row)
        return bool(row >= 0)

    def apply(self, logits: Tensor, ctx: Any) -> Tensor:
        """`logits [rows, V]`, with 0 at the chosen token and −inf at all others in the rows of the run.

        Raises:
            FrugalignError: hidden states are not those of these rows, as in batch-sharded sampling.
        """
        if not _ACTIVE:
            return logits
        active, slots = _ACTIVE[0], ctx.idx_mapping_np
        length = ctx.seq_lens_upper_bound_np[: len(slots)]
        if isinstance(active, Reading):
            active.expect(self._row[slots].tolist(), length.tolist())
            return logits
        # Logits after a part of what is to be fed, as in chunked prefill, are read by nobody.
        is_fed = length >= self._lengths.prefill_len.np[slots]
        places = np.flatnonzero((self._row[slots] >= 0) & is_fed)
        if not len(places):
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
        token = active.choose(rows, position, hidden[where], logits[where])
        logits[where] = -math.inf
        logits[where, token] = 0.0
        return logits
