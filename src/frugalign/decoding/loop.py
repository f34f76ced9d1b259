"""The decoding loop shared by rollouts, evaluation and serving.

Batched, left-padded, with a KV cache; every row stops at its own end token and leaves the batch once enough rows have ended.
All choices come from a `Chooser` and keyed noise, so a completion does not depend on the batch it is in. What it leaves out on
purpose: beams, penalties and streamers (attach the proxy and call `model.generate` for those).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from frugalign.base.errors import FrugalignError
from frugalign.base.ledger import Ledger
from frugalign.decoding.chooser import BaseGuide, Chooser, Emission, Lookahead, TokenTrace
from frugalign.decoding.noise import Noise, row_keys
from frugalign.engines.loading import end_token_ids
from frugalign.engines.transformers import Forward, device_of, evaluating

_COMPACT_BELOW = 0.75
"""Finished rows leave the batch when less than this share of it is alive: copying the cache costs a step or so."""


_COUNTS_PADDING = {"mpt", "gpt_neo"}
"""Architectures whose attention counts places in the cache, padding too: no prefix is shared."""


@dataclass(frozen=True)
class SamplingParams:
    """How to sample, named as in transformers' `GenerationConfig`; `temperature` is used where no guide brings its own."""

    max_new_tokens: int = 128
    temperature: float = 1.0
    do_sample: bool = True


@dataclass(frozen=True)
class Step:
    """One position as an observer sees it: the live rows (indices into the input), the LM head's input, what was chosen."""

    position: int
    rows: Tensor
    hidden: Tensor
    emission: Emission


Observer = Callable[[Step], None]


@dataclass
class Generation:
    """Completions in the order of the prompts.

    `completion_ids`: token ids, the end token included; `ended`: whether an end token was emitted; `kl_restriction [B]` and
    `kl_choice [B]`: nats a sequence (None when greedy); `states [B, layers, D]` at the endpoint (the completion's last token)
    when layers were asked for; `traces`: proposals token by token when asked for.
    """

    completion_ids: list[list[int]]
    ended: list[bool]
    kl_restriction: Tensor | None = None
    kl_choice: Tensor | None = None
    states: Tensor | None = None
    traces: list[list[TokenTrace]] | None = None


@torch.no_grad()
def generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompt_ids: Sequence[Sequence[int]],
    params: SamplingParams,
    *,
    keys: Tensor | None = None,
    guide: Chooser | None = None,
    batch_size: int = 64,
    observer: Observer | None = None,
    state_layers: Sequence[int] = (),
    shared_prefix: int = 0,
    ledger: Ledger | None = None,
    record_trace: bool = False,
) -> Generation:
    """Complete every prompt.

    Args:
        prompt_ids: token ids a row, none empty.
        keys: `[B]` noise keys from `row_keys`; default: seed 0 and the row's number.
        guide: chooses the tokens; default: the base at `params.temperature`.
        state_layers: indices into Hugging Face's `hidden_states` whose endpoint states are returned. Rows that have ended stay for
            the step that feeds their last token, and a batch takes one step more (both counted in the ledger).
        shared_prefix: so many first tokens are the same in all prompts (see `common_prefix`); they are fed once, and every batch goes on
            from a copy of that cache (where the model allows it: see `_can_go_on`).

    Raises:
        FrugalignError: for an empty prompt, or a base that cannot be guided.
    """
    if not prompt_ids:
        return Generation([], [])
    for row, ids in enumerate(prompt_ids):
        if not ids:
            raise FrugalignError(f"Prompt {row} is empty after tokenisation.")
    if keys is None:
        keys = row_keys(0, 0, range(len(prompt_ids)), [0] * len(prompt_ids))
    guide = guide or BaseGuide(params.temperature)
    device = device_of(model)
    keys = keys.to(device)
    result = _Accumulator(len(prompt_ids), params.do_sample, record_trace)
    # Neighbours in length share a batch: less padding, same completions.
    order = sorted(range(len(prompt_ids)), key=lambda row: len(prompt_ids[row]), reverse=True)
    with evaluating(model), Forward(model) as forward:
        prefix = None
        if shared_prefix:
            prefix = forward(torch.tensor([list(prompt_ids[0][:shared_prefix])], device=device)).cache
            if ledger is not None:
                ledger.count(lm_forward_tokens=shared_prefix)
            longest = len(prompt_ids[order[0]]) + params.max_new_tokens
            if model.config.model_type in _COUNTS_PADDING or not _can_go_on(prefix, longest):
                prefix = None
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            batch = _Batch(
                forward, [prompt_ids[row] for row in rows], torch.tensor(rows), keys[rows], tokenizer, device
            )
            if prefix is not None:
                batch.begin_after(prefix, shared_prefix)
            _decode(batch, guide, params, end_token_ids(model, tokenizer), result, observer, state_layers, ledger)
    return result.finish()


def common_prefix(prompt_ids: Sequence[Sequence[int]]) -> int:
    """How many first tokens all prompts have in common, at least one of each left over."""
    if not prompt_ids:
        return 0
    rows = [list(ids) for ids in prompt_ids]
    first, last = min(rows), max(rows)  # what the least and the greatest share, all share
    shared = next((place for place, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first))
    return max(0, min(shared, min(map(len, prompt_ids)) - 1))


def _can_go_on(prefix: Any, longest: int) -> bool:
    """Whether rows of up to `longest` tokens may go on from this one-row cache with padding after it: attention leaves the padding out, but a
    sliding window would count it, and a convolution or a recurrence read it."""
    layers = getattr(prefix, "layers", [])
    return bool(layers) and all(
        type(layer) is DynamicLayer or (type(layer) is DynamicSlidingWindowLayer and layer.sliding_window >= longest)
        for layer in layers
    )


def _decode(
    batch: _Batch,
    guide: Chooser,
    params: SamplingParams,
    end_ids: tuple[int, ...],
    result: _Accumulator,
    observer: Observer | None,
    state_layers: Sequence[int],
    ledger: Ledger | None,
) -> None:
    ends = torch.tensor(end_ids, device=batch.device)
    for position in range(params.max_new_tokens):
        hidden, logits = batch.step(ledger, state_layers, result)
        noise = Noise(batch.keys, position)
        lookahead = batch.lookahead(ledger) if guide.needs_lookahead else None
        emission = guide.emit(hidden, logits, noise, do_sample=params.do_sample, lookahead=lookahead)
        ended = torch.isin(emission.token, ends)
        result.add(batch, emission, ended, guide, noise)
        if observer is not None:
            alive = batch.alive
            observer(
                Step(position, batch.rows, hidden, emission)
                if alive.all()
                else _only(alive, batch, position, hidden, emission)
            )
        if ledger is not None:
            ledger.count(generated_tokens=int(batch.alive.sum()))
        if state_layers:
            batch.pending = batch.alive & (ended | (position + 1 == params.max_new_tokens))
        batch.append(emission.token)
        batch.alive = batch.alive & ~ended
        n_alive = int(batch.alive.sum())
        if n_alive == 0:
            break
        if n_alive < _COMPACT_BELOW * len(batch.rows):
            batch.compact()
    if bool(batch.pending.any()):
        batch.alive = torch.zeros_like(batch.alive)
        batch.compact()
        batch.step(ledger, state_layers, result)


def _only(alive: Tensor, batch: _Batch, position: int, hidden: Tensor, emission: Emission) -> Step:
    details = emission.details
    narrowed = Emission(
        token=emission.token[alive],
        kl_restriction=None if emission.kl_restriction is None else emission.kl_restriction[alive],
        kl_choice=None if emission.kl_choice is None else emission.kl_choice[alive],
        details=details.select(alive) if hasattr(details, "select") else details,
    )
    return Step(position, batch.rows[alive.cpu()], hidden[alive], narrowed)


class _Batch:
    """The moving parts of one batch: cache, mask, position ids, the token fed next, and which rows still run."""

    def __init__(
        self,
        forward: Forward,
        prompt_ids: list[Sequence[int]],
        rows: Tensor,
        keys: Tensor,
        tokenizer: PreTrainedTokenizerBase,
        device: torch.device,
    ) -> None:
        width = max(len(ids) for ids in prompt_ids)
        pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0
        self.input_ids = torch.tensor([[pad] * (width - len(ids)) + list(ids) for ids in prompt_ids], device=device)
        self.mask = torch.tensor([[0] * (width - len(ids)) + [1] * len(ids) for ids in prompt_ids], device=device)
        self.positions = (self.mask.cumsum(-1) - 1).clamp(min=0)
        self.forward, self.rows, self.keys, self.device = forward, rows, keys, device
        self.alive = torch.ones(len(rows), dtype=torch.bool, device=device)
        self.pending = torch.zeros_like(self.alive)
        self.cache: Any = None

    def begin_after(self, prefix: Any, length: int) -> None:
        """Leave out the first `length` tokens of every row: they are in the one-row cache `prefix`, which stays as it is."""
        self.cache = copy_cache(prefix)
        self.cache.batch_repeat_interleave(len(self.rows))
        lengths = self.mask.sum(-1) - length
        width = int(lengths.max())
        # The padding comes between the prefix and the rest of a shorter row.
        self.input_ids = self.input_ids[:, -width:]
        own = torch.arange(width, device=self.device) >= width - lengths[:, None]
        self.mask = torch.cat([self.mask.new_ones(len(self.rows), length), own.to(self.mask)], 1)
        self.positions = (self.mask.cumsum(-1) - 1)[:, length:]

    def step(self, ledger: Ledger | None, state_layers: Sequence[int], result: _Accumulator) -> tuple[Tensor, Tensor]:
        """Feed what is new; returns the head's input `[b, D]` and the logits `[b, V]` at the last position.

        The rows in `pending` have ended with the token fed now: their states at it are the endpoint's.
        """
        output = self.forward(
            self.input_ids,
            attention_mask=self.mask,
            position_ids=self.positions,
            cache=self.cache,
            all_layers=bool(self.pending.any()),
        )
        self.cache = output.cache
        if output.layers is not None:
            done = self.pending.nonzero().squeeze(-1)
            states = torch.stack([output.layers[layer][done, -1].float() for layer in state_layers], 1)
            result.add_states(self.rows[done.cpu()], states)
            self.pending = torch.zeros_like(self.pending)
        if ledger is not None:
            ledger.count(lm_forward_tokens=int(self.mask[:, -self.input_ids.shape[1] :].sum()))
        return output.hidden[:, -1], output.logits[:, -1]

    def append(self, token: Tensor) -> None:
        self.input_ids = token[:, None]
        self.mask = torch.cat([self.mask, self.mask.new_ones(len(token), 1)], 1)
        self.positions = self.positions[:, -1:] + 1

    def compact(self) -> None:
        """Drop the rows that have ended, and whose endpoint states nobody waits for, from the cache and everything beside it."""
        keep = (self.alive | self.pending).nonzero().squeeze(-1)
        self.cache.batch_select_indices(keep)
        self.input_ids, self.mask, self.positions = self.input_ids[keep], self.mask[keep], self.positions[keep]
        self.rows, self.keys = self.rows[keep.cpu()], self.keys[keep]
        self.alive, self.pending = self.alive[keep], self.pending[keep]

    def lookahead(self, ledger: Ledger | None) -> Lookahead:
        """All candidates of a position in one batched pass on copies of the shared cache."""
        mask, positions, cache = self.mask, self.positions, self.cache
        return lookahead_on(self.forward, cache, mask, positions[:, -1:] + 1, ledger)


def copy_cache(cache: Any) -> Any:
    """A copy of a KV cache that shares no tensor which a later step would change.

    Raises:
        FrugalignError: for a cache that cannot be copied and expanded.
    """
    if not hasattr(cache, "batch_select_indices") or not hasattr(cache, "batch_repeat_interleave"):
        raise FrugalignError(f"A {type(cache).__name__} cannot be expanded, so this model offers no lookahead.")
    from copy import deepcopy

    return deepcopy(cache)


def lookahead_on(forward: Forward, cache: Any, mask: Tensor, next_position: Tensor, ledger: Ledger | None) -> Lookahead:
    """Lookahead on a cache that already holds the prefix: `mask [B, T]` of it, `next_position [B, 1]` of the candidate."""

    def look(candidate_ids: Tensor) -> Tensor:
        n = candidate_ids.shape[1]
        expanded = copy_cache(cache)
        expanded.batch_repeat_interleave(n)
        wide_mask = torch.cat([mask, mask.new_ones(len(mask), 1)], 1).repeat_interleave(n, 0)
        output = forward(
            candidate_ids.reshape(-1, 1),
            attention_mask=wide_mask,
            position_ids=next_position.repeat_interleave(n, 0),
            cache=expanded,
        )
        if ledger is not None:
            ledger.count(lm_forward_tokens=candidate_ids.numel())
        return output.hidden[:, -1].reshape(*candidate_ids.shape, -1)

    return look


class _Accumulator:
    """Collects what every row emitted, in the order of the prompts."""

    def __init__(self, n: int, do_sample: bool, record_trace: bool) -> None:
        self.ids: list[list[int]] = [[] for _ in range(n)]
        self.ended = [False] * n
        self.traces: list[list[TokenTrace]] | None = [[] for _ in range(n)] if record_trace else None
        self.restriction = torch.zeros(n, dtype=torch.float64) if do_sample else None
        self.choice = torch.zeros(n, dtype=torch.float64) if do_sample else None
        self.states: list[Tensor | None] = [None] * n

    def add(self, batch: _Batch, emission: Emission, ended: Tensor, guide: Chooser, noise: Noise) -> None:
        alive = batch.alive.tolist()
        rows, tokens, stops = batch.rows.tolist(), emission.token.tolist(), ended.tolist()
        for index, row in enumerate(rows):
            if alive[index]:
                self.ids[row].append(tokens[index])
                self.ended[row] = stops[index]
        live_rows = batch.rows[batch.alive.cpu()]
        if self.restriction is not None and emission.kl_restriction is not None:
            self.restriction[live_rows] += emission.kl_restriction[batch.alive].double().cpu()
        if self.choice is not None and emission.kl_choice is not None:
            self.choice[live_rows] += emission.kl_choice[batch.alive].double().cpu()
        if self.traces is not None:
            for index, entry in enumerate(guide.trace(emission, noise)):
                if alive[index]:
                    self.traces[rows[index]].append(entry)

    def add_states(self, rows: Tensor, states: Tensor) -> None:
        for row, state in zip(rows.tolist(), states, strict=True):
            self.states[row] = state

    def finish(self) -> Generation:
        states = [state for state in self.states if state is not None]
        return Generation(
            completion_ids=self.ids,
            ended=self.ended,
            kl_restriction=self.restriction,
            kl_choice=self.choice,
            states=torch.stack(states) if states else None,
            traces=self.traces,
        )
