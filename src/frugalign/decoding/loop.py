"""The decoding loop shared by rollouts, evaluation and serving.

It is batched and cached. Every row stops at its own end token, and finished rows leave the batch once enough have
ended. An `Engine` runs the model and a `Chooser` picks tokens. Noise is keyed, so a completion does not depend on its
batch. An engine with a loop of its own is a `LoopingEngine`.

Left out on purpose: beams, penalties and streamers. For those, attach the proxy and call `model.generate`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from frugalign.base.errors import FrugalignError
from frugalign.base.ledger import Ledger
from frugalign.base.progress import SAMPLED, advance
from frugalign.base.quantities import KL_PARTS
from frugalign.decoding.chooser import BaseGuide, Chooser, Emission, TokenTrace
from frugalign.decoding.looping_engine import LoopingEngine
from frugalign.decoding.noise import Noise, row_keys
from frugalign.decoding.waits import places_of
from frugalign.engines.engine import Engine, Sequences, StepOutput
from frugalign.engines.sentences import SentenceEnds

_COMPACT_BELOW = 0.75
"""Finished rows leave the batch when less than this share of it is alive. Copying the cache costs about one step."""


@dataclass(frozen=True)
class SamplingParams:
    """How to sample, named as in transformers' `GenerationConfig`. A guide's own temperature overrides `temperature`."""

    max_new_tokens: int = 128
    temperature: float = 1.0
    do_sample: bool = True


@dataclass(frozen=True)
class Step:
    """One position as an observer sees it: the live rows (indices into the input), the LM head's input, and the
    choice, all on the engine's device. An observer that looks at their values makes the host wait for the device.

    `position`: one for all rows, or that of each row, `[B]`, where rows start at different times.
    """

    position: int | Tensor
    rows: Tensor
    hidden: Tensor
    emission: Emission


Observer = Callable[[Step], None]


@dataclass(frozen=True)
class LoopOptions:
    """How the loop runs and what it reports. None of this changes a completion.

    `batch_size`: rows per batch. `shared_prefix`: length of the prompts' common prefix (see `common_prefix`), which
    is fed once if the engine can resume from it. `state_layers`: indices into Hugging Face's `hidden_states` whose
    states at the completion's last sentence end are returned. Ended rows without one stay for one more step, which
    feeds their last token; the ledger counts it. `observer`: called at every position. `record_trace`: keep the
    proposals behind every token.
    """

    batch_size: int = 64
    shared_prefix: int = 0
    state_layers: Sequence[int] = ()
    observer: Observer | None = None
    record_trace: bool = False


@dataclass
class Generation:
    """Completions in the order of the prompts.

    `completion_ids`: token ids, end token included. `ended`: whether an end token was emitted. `kl_temperature`,
    `kl_restriction` and `kl_choice [B]`: nats per sequence, None if greedy. They add up to the KL to the base at temperature 1. `states [B, layers, D]`: requested layers at the
    completion's last sentence end, or at its last token if it has none. `traces`: requested proposals, token by token.
    """

    completion_ids: list[list[int]]
    ended: list[bool]
    kl_temperature: Tensor | None = None
    kl_restriction: Tensor | None = None
    kl_choice: Tensor | None = None
    states: Tensor | None = None
    traces: list[list[TokenTrace]] | None = None


@torch.no_grad()
def generate(
    engine: Engine | LoopingEngine,
    prompt_ids: Sequence[Sequence[int]],
    params: SamplingParams,
    *,
    keys: Tensor | None = None,
    guide: Chooser | None = None,
    options: LoopOptions | None = None,
    ledger: Ledger | None = None,
) -> Generation:
    """Complete every prompt.

    Args:
        prompt_ids: token ids per row, none empty.
        keys: `[B]` noise keys from `row_keys`. Default: seed 0 and the row number.
        guide: chooses the tokens; default: the base at `params.temperature`.
        options: default: `LoopOptions()`.

    Raises:
        FrugalignError: a prompt is empty, or the engine lacks a required capability.
    """
    options = options or LoopOptions()
    if not prompt_ids:
        return Generation([], [])
    for row, ids in enumerate(prompt_ids):
        if not ids:
            raise FrugalignError(f"Prompt {row} is empty after tokenisation.")
    if keys is None:
        keys = row_keys(0, 0, range(len(prompt_ids)), [0] * len(prompt_ids))
    guide = guide or BaseGuide(params.temperature)
    _check_engine(engine, guide, params, options)
    keys = keys.to(engine.device)
    if isinstance(engine, LoopingEngine):
        return engine.complete(prompt_ids, keys, guide, params, options, ledger)
    result = _Accumulator(len(prompt_ids), params.do_sample, options.record_trace, engine.device)
    # Rows of similar length share a batch: less padding, same completions.
    order = sorted(range(len(prompt_ids)), key=lambda row: len(prompt_ids[row]), reverse=True)
    batch_size = min(options.batch_size, engine.capabilities.max_rows or options.batch_size)
    ends = engine.sentence_ends.to(engine.device) if options.state_layers else None
    with engine.running():
        prefix = None
        if options.shared_prefix and engine.capabilities.can_expand:
            longest = len(prompt_ids[order[0]]) + params.max_new_tokens
            prefix = engine.prefill_prefix(prompt_ids[0][: options.shared_prefix], longest)
            if ledger is not None:
                ledger.count(lm_forward_tokens=options.shared_prefix)
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            sequences, output, fed = _prefill(engine, [prompt_ids[row] for row in rows], prefix)
            if ledger is not None:
                fed_before = options.shared_prefix if prefix is not None else 0
                ledger.count(lm_forward_tokens=sum(len(ids) - fed_before for ids in fed))
            batch = _Batch(engine, sequences, rows, keys[rows], ledger, ends)
            _decode(batch, output, guide, params, options, result)
    return result.finish()


def _prefill(
    engine: Engine, prompts: Sequence[Sequence[int]], prefix: Any
) -> tuple[Sequences, StepOutput, list[Sequence[int]]]:
    """Feed every prompt once, however many rows begin with it. The third value: the prompts that were fed."""
    places: dict[tuple[int, ...], int] = {}
    index = [places.setdefault(tuple(ids), len(places)) for ids in prompts]
    can = engine.capabilities
    if len(places) == len(prompts) or not (can.can_select and can.can_expand):
        return *engine.prefill(prompts, prefix), list(prompts)
    distinct: list[Sequence[int]] = list(places)
    sequences, output = engine.prefill(distinct, prefix)
    rows = torch.tensor(index, device=engine.device)
    sequences.select(rows)
    return sequences, StepOutput(output.hidden[rows], output.logits[rows]), distinct


def _check_engine(engine: Engine | LoopingEngine, guide: Chooser, params: SamplingParams, options: LoopOptions) -> None:
    """Raise if the engine lacks a required capability."""
    can = engine.capabilities
    if guide.needs_hidden and not can.gives_hidden:
        raise FrugalignError(f"{engine.name} does not give the LM head's input, which this guide reads.")
    if guide.needs_lookahead and not can.can_expand:
        raise FrugalignError(f"{engine.name} cannot expand its cache, so it does not support lookahead.")
    if params.do_sample and not can.gives_whole_vocabulary:
        raise FrugalignError(
            f"{engine.name} gives logits for only part of the vocabulary, so it can only decode greedily."
        )
    if options.state_layers and not can.gives_layers:
        raise FrugalignError(f"{engine.name} does not give hidden states of single layers, which a state reward reads.")


def common_prefix(prompt_ids: Sequence[Sequence[int]]) -> int:
    """The length of the prompts' common prefix. At least one token of each prompt is left out of it."""
    if not prompt_ids:
        return 0
    rows = [list(ids) for ids in prompt_ids]
    first, last = min(rows), max(rows)  # all rows share what the smallest and the largest share
    shared = next((place for place, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first))
    return max(0, min(shared, min(map(len, prompt_ids)) - 1))


def _decode(
    batch: _Batch,
    output: StepOutput,
    guide: Chooser,
    params: SamplingParams,
    options: LoopOptions,
    result: _Accumulator,
) -> None:
    """Complete one batch from the `output` of its prefill. At each position the host looks at the device once, in `read`."""
    ends = torch.tensor(batch.engine.end_token_ids, device=batch.engine.device)
    for position in range(params.max_new_tokens):
        if position > 0:
            output = batch.step(options.state_layers, result)
        noise = Noise(batch.keys, position)
        lookahead = batch.look_ahead if guide.needs_lookahead else None
        emission = guide.emit(output.hidden, output.logits, noise, do_sample=params.do_sample, lookahead=lookahead)
        ended = torch.isin(emission.token, ends)
        result.add_kl(batch, emission)
        if options.observer is not None:
            options.observer(batch.seen(position, output.hidden, emission))
        if batch.ledger is not None:
            batch.ledger.count(generated_tokens=batch.n_alive)
        if options.state_layers:
            batch.mark(emission.token, ended | (position + 1 == params.max_new_tokens))
        if options.record_trace:
            result.add_traces(batch, guide.trace(emission, noise))
        before = batch.n_alive
        batch.read(emission.token, ended, result)
        advance(SAMPLED, before + (before - batch.n_alive) * (params.max_new_tokens - position - 1))
        if batch.n_alive == 0:
            break
        if batch.n_alive < _COMPACT_BELOW * len(batch.places):
            batch.compact()
    if batch.n_pending:
        batch.end_all()
        batch.compact()
        batch.step(options.state_layers, result)


class _Batch:
    """The state of one batch: the engine's sequences, the next token to feed, and which rows are alive.

    `rows [b]`: indices into the prompts. `ends`: the sentence ends, if states are kept. `pending [b]`: rows whose state is
    kept once their last token is fed. `is_read [b]`: rows that have kept one. `recent [b, W]`: the last tokens, as many as
    a sentence end may take. `places`, `is_alive` and `is_pending` are what the host knows of `rows`, `alive` and `pending`.
    """

    def __init__(
        self,
        engine: Engine,
        sequences: Sequences,
        places: Sequence[int],
        keys: Tensor,
        ledger: Ledger | None,
        ends: SentenceEnds | None,
    ) -> None:
        self.engine, self.sequences, self.keys, self.ledger, self.ends = engine, sequences, keys, ledger, ends
        self.places, self.is_alive, self.is_pending = list(places), [True] * len(places), [False] * len(places)
        self.rows = torch.tensor(self.places, device=engine.device)
        self.alive = torch.ones(len(places), dtype=torch.bool, device=engine.device)
        self.pending = torch.zeros_like(self.alive)
        self.is_read = torch.zeros_like(self.alive)
        self.token = torch.zeros(len(places), dtype=torch.long, device=engine.device)
        self.recent = self.token.new_full((len(places), 1 if ends is None else ends.width), -1)

    @property
    def n_alive(self) -> int:
        return sum(self.is_alive)

    @property
    def n_pending(self) -> int:
        return sum(self.is_pending)

    def step(self, state_layers: Sequence[int], result: _Accumulator) -> StepOutput:
        """Feed the chosen tokens. The states of pending rows go to `result`."""
        output = self.sequences.step(self.token, state_layers if self.n_pending else ())
        if output.layers is not None:
            done = places_of(self.pending, self.n_pending)
            result.add_states(self.rows[done], output.layers[done])
            self.pending, self.is_pending = torch.zeros_like(self.pending), [False] * len(self.places)
        if self.ledger is not None:
            self.ledger.count(lm_forward_tokens=len(self.token))
        return output

    def mark(self, token: Tensor, last: Tensor) -> None:
        """Note the rows whose state after `token [b]` is kept: at a sentence end, and at the last token of a row without
        one. `SentenceEnds.last` decides the same."""
        assert self.ends is not None
        self.recent = torch.cat([self.recent[:, 1:], token[:, None]], 1)
        self.pending = self.alive & (self.ends.at_end(self.recent) | (last & ~self.is_read))
        self.is_read = self.is_read | self.pending

    def read(self, token: Tensor, ended: Tensor, result: _Accumulator) -> None:
        """Take in the chosen `token [b]`, after which a row may have `ended [b]`. This is the host's one look at a position."""
        tokens, stops, pending = torch.stack([token, ended.long(), self.pending.long()]).tolist()
        result.add(self, tokens, stops)
        self.token, self.alive = token, self.alive & ~ended
        self.is_alive = [alive and not stop for alive, stop in zip(self.is_alive, stops, strict=True)]
        self.is_pending = list(map(bool, pending))

    def end_all(self) -> None:
        """No row is alive any more."""
        self.alive, self.is_alive = torch.zeros_like(self.alive), [False] * len(self.places)

    def look_ahead(self, candidates: Tensor) -> Tensor:
        """The hidden states after each of `candidates [B, K]`: `[B, K, D]`."""
        if self.ledger is not None:
            self.ledger.count(lm_forward_tokens=candidates.numel())
        return self.sequences.look_ahead(candidates)

    def compact(self) -> None:
        """Drop ended rows, except pending ones, if the engine can."""
        if not self.engine.capabilities.can_select:
            return
        kept = [place for place in range(len(self.places)) if self.is_alive[place] or self.is_pending[place]]
        keep = places_of(self.alive | self.pending, len(kept))
        self.sequences.select(keep)
        self.places = [self.places[place] for place in kept]
        self.is_alive = [self.is_alive[place] for place in kept]
        self.is_pending = [self.is_pending[place] for place in kept]
        self.rows, self.keys, self.token = self.rows[keep], self.keys[keep], self.token[keep]
        self.alive, self.pending, self.is_read = self.alive[keep], self.pending[keep], self.is_read[keep]
        self.recent = self.recent[keep]

    def seen(self, position: int, hidden: Tensor, emission: Emission) -> Step:
        """This position as an observer sees it, with live rows only."""
        if self.n_alive == len(self.places):
            return Step(position, self.rows, hidden, emission)
        live = places_of(self.alive, self.n_alive)
        details = emission.details
        parts = {name: getattr(emission, name) for name in KL_PARTS}
        narrowed = Emission(
            token=emission.token[live],
            **{name: None if part is None else part[live] for name, part in parts.items()},
            details=details.select(live) if hasattr(details, "select") else details,
        )
        return Step(position, self.rows[live], hidden[live], narrowed)


class _Accumulator:
    """Collects what every row emitted, in the order of the prompts."""

    def __init__(self, n: int, do_sample: bool, record_trace: bool, device: torch.device) -> None:
        self.ids: list[list[int]] = [[] for _ in range(n)]
        self.ended = [False] * n
        self.traces: list[list[TokenTrace]] | None = [[] for _ in range(n)] if record_trace else None
        names = KL_PARTS if do_sample else ()
        self.kl = {name: torch.zeros(n, dtype=torch.float64, device=device) for name in names}
        self.n = n
        self.states: Tensor | None = None

    def add(self, batch: _Batch, tokens: Sequence[int], stops: Sequence[int]) -> None:
        """Add the token of every live row, and whether it ended there."""
        for row, alive, token, stop in zip(batch.places, batch.is_alive, tokens, stops, strict=True):
            if alive:
                self.ids[row].append(token)
                self.ended[row] = bool(stop)

    def add_kl(self, batch: _Batch, emission: Emission) -> None:
        """Add what the position cost every live row, in nats. The sums stay on the device."""
        for name, total in self.kl.items():
            part: Tensor | None = getattr(emission, name)
            if part is not None:
                total[batch.rows] += part.double().masked_fill(~batch.alive, 0.0)

    def add_traces(self, batch: _Batch, entries: Sequence[TokenTrace]) -> None:
        assert self.traces is not None
        for row, alive, entry in zip(batch.places, batch.is_alive, entries, strict=True):
            if alive:
                self.traces[row].append(entry)

    def add_states(self, rows: Tensor, states: Tensor) -> None:
        if self.states is None:
            self.states = states.new_zeros(self.n, *states.shape[1:])
        self.states[rows.to(states.device)] = states

    def finish(self) -> Generation:
        return Generation(
            completion_ids=self.ids,
            ended=self.ended,
            **{name: total.cpu() for name, total in self.kl.items()},
            states=self.states,
            traces=self.traces,
        )
