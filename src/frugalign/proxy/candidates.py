"""SKAM's candidates of a position, and everything else as one more candidate, the tail. The rule is this project's own
(`docs/methods/proxy.md#candidates`).

`C = {c : p_T(c) ≥ p_t} ∪ {argmax p_T}`, at most the `max_candidates` likeliest. With the tail kept, all tokens outside
`C` are proposed and judged together, with their mass `p_R = 1 − p_T(C)`. With it dropped, proposals come from `p_T`
renormalised on `C`, and that alone costs `−log p_T(C)` nats per position, before anything is learned.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from frugalign.decoding.waits import looking_is_free

_SEARCH_FROM = 1 << 14

Tail = Literal["keep", "drop"]


@dataclass
class Candidates:
    """Candidates of `B` positions, padded to `K` columns and sorted by probability, the likeliest first.

    `ids [B, K]`; `mask [B, K]` (true where real); `log_p [B, K]`: log-probability of each as a proposal, −inf at padding.
    A kept tail follows a row's last candidate, with the vocabulary's size as its id. `tail [B, K]` is true there.
    `log_mass [B]`: log of the mass of all columns under `p_T`, 0 with the tail kept. `capped [B]`: whether
    `max_candidates` cut the threshold's set.
    """

    ids: Tensor
    mask: Tensor
    log_p: Tensor
    tail: Tensor
    log_mass: Tensor
    capped: Tensor

    @property
    def listed(self) -> Tensor:
        """Columns of a token of their own, which is all but padding and the tail: bool `[B, K]`."""
        return self.mask & ~self.tail

    def select(self, rows: Tensor) -> Candidates:
        return Candidates(
            self.ids[rows],
            self.mask[rows],
            self.log_p[rows],
            self.tail[rows],
            self.log_mass[rows],
            self.capped[rows],
        )


@dataclass(frozen=True)
class Limits:
    """Which tokens a proxy judges one by one: `p_t` in [0, 1) is their lowest probability, `max_candidates` their number."""

    p_t: float
    max_candidates: int

    @property
    def largest(self) -> int:
        """How many candidates a position can have: the cap, or as many tokens as can reach the threshold."""
        return min(self.max_candidates, math.ceil(1 / self.p_t)) if self.p_t > 0 else self.max_candidates


def candidates(logits: Tensor, temperature: float, limits: Limits, tail: Tail = "drop") -> Candidates:
    """The candidates of the LM's next-token distribution.

    Args:
        logits: `[B, V]`, float32.
        temperature: `T > 0` of `p_T = softmax(logits / T)`.
        tail: whether everything else stays as one more candidate, which `max_candidates` does not count.
    """
    return _columns(_likeliest(logits, temperature, limits), tail)


def shared_candidates(
    logits: Tensor, temperature: float, limits: Sequence[Limits], tail: Tail
) -> tuple[Candidates, list[Tensor]]:
    """The candidates of several proxies together, and which columns are each one's own, bool `[B, K]`.

    They are the union with the tail kept, and the intersection with it dropped
    (`docs/methods/proxy.md#strength-and-composition`). Each proxy's are a prefix of the others', so both have the likeliest.
    """
    widest = Limits(min(each.p_t for each in limits), max(each.max_candidates for each in limits))
    found = _likeliest(logits, temperature, widest)
    column = torch.arange(found.ids.shape[1], device=found.ids.device)
    own = []
    for each in limits:
        above = found.values >= found.log_total + _log(each.p_t)
        own.append(found.mask & (above & (column < each.max_candidates) | (column == 0)))
    together = torch.stack(own)
    found = replace(found, mask=together.any(0) if tail == "keep" else together.all(0))
    joint = _columns(found, tail)
    return joint, [torch.nn.functional.pad(each, (0, joint.ids.shape[1] - each.shape[1])) for each in own]


@dataclass
class _Likeliest:
    """Sorted `ids` and `values [B, K]` of the likeliest tokens within `scaled = logits / T [B, V]`, and `log_total [B, 1]`
    of all. The true entries of `mask [B, K]` are a prefix."""

    scaled: Tensor
    log_total: Tensor
    ids: Tensor
    values: Tensor
    mask: Tensor
    capped: Tensor


def _log(p_t: float) -> float:
    """`log p_t`, but finite at 0: a token that the LM rules out, with a logit of −inf, is never a candidate."""
    return math.log(p_t) if p_t > 0 else torch.finfo(torch.float32).min


def _likeliest(logits: Tensor, temperature: float, limits: Limits) -> _Likeliest:
    scaled = logits if temperature == 1.0 else logits / temperature
    log_total = scaled.logsumexp(-1, keepdim=True)
    likely, most = scaled >= log_total + _log(limits.p_t), limits.max_candidates
    may_search = limits.p_t > 0 and logits.numel() >= _SEARCH_FROM  # at 0 it would find the whole vocabulary
    found = _search(scaled, likely, most) if may_search and looking_is_free(logits) else None
    if found is None:
        wanted = likely.sum(-1).clamp(min=1)
        count = wanted.clamp(max=most)
        width = int(count.max()) if looking_is_free(logits) else min(limits.largest, logits.shape[-1])
        values, ids = scaled.topk(width, dim=-1)
    else:
        values, ids, wanted = found
        count = wanted
    mask = torch.arange(ids.shape[1], device=ids.device) < count[:, None]
    return _Likeliest(scaled, log_total, ids, values, mask, wanted > most)


def _columns(found: _Likeliest, tail: Tail) -> Candidates:
    mask, log_total = found.mask, found.log_total
    values, ids = found.values.masked_fill(~mask, -math.inf), found.ids.masked_fill(~mask, 0)
    if tail == "drop":
        mass = values.logsumexp(-1, keepdim=True)
        log_mass = (mass - log_total).squeeze(-1).clamp(max=0.0)
        return Candidates(ids, mask, values - mass, torch.zeros_like(mask), log_mass, found.capped)
    # One more column after each row's last candidate. A row whose candidates are the whole vocabulary has no tail.
    rest = beyond(found.scaled, ids, mask).logsumexp(-1, keepdim=True)
    place = mask.sum(-1, keepdim=True)
    ids, values, mask = pad(ids, (0, 1)), pad(values, (0, 1), value=-math.inf), pad(mask, (0, 1))
    is_tail = torch.zeros_like(mask).scatter_(-1, place, rest > -math.inf)
    return Candidates(
        ids=ids.masked_fill(is_tail, found.scaled.shape[-1]),
        mask=mask | is_tail,
        log_p=values.scatter_(-1, place, rest) - log_total,
        tail=is_tail,
        log_mass=torch.zeros_like(log_total.squeeze(-1)),
        capped=found.capped,
    )


def beyond(scaled: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
    """`scaled [B, V]` with −inf at the tokens `ids [B, K]` where `mask` is true."""
    # The likeliest is always one of them: the other columns write where it does.
    return scaled.scatter(-1, torch.where(mask, ids, ids[:, :1]), -math.inf)


def _search(scaled: Tensor, likely: Tensor, max_candidates: int) -> tuple[Tensor, Tensor, Tensor] | None:
    """Values, ids and counts of the tokens in `likely [B, V]`, sorted and padded as by `topk`.

    Several times cheaper than `topk` for few tokens. None if a row has no such token, or more than the cap.
    """
    rows, columns = _where(likely)
    wanted = torch.bincount(rows, minlength=len(scaled))
    if int(wanted.min()) == 0 or int(wanted.max()) > max_candidates:
        return None
    place = torch.arange(len(rows), device=rows.device) - (wanted.cumsum(0) - wanted)[rows]
    values = scaled.new_full((len(scaled), int(wanted.max())), -math.inf)
    ids = torch.zeros_like(values, dtype=torch.long)
    values[rows, place], ids[rows, place] = scaled[rows, columns], columns
    values, order = values.sort(dim=-1, descending=True, stable=True)
    return values, ids.gather(-1, order), wanted


def _where(mask: Tensor) -> tuple[Tensor, Tensor]:
    """Rows and columns of the true entries of `mask [B, V]`, in order, on a CPU. There numpy is several times faster than
    torch."""
    flat = torch.from_numpy(np.flatnonzero(mask.numpy()))
    rows = flat // mask.shape[1]
    return rows, flat - rows * mask.shape[1]
