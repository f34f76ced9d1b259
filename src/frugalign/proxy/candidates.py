"""SKAM's restriction of the frozen LM to candidate tokens. The rule is this project's own
(`docs/methods/proxy.md#candidates`).

`C = {c : p_T(c) ≥ p_t} ∪ {argmax p_T}`, at most the `max_candidates` likeliest. Proposals come from `p_T`
renormalised on `C`. The restriction alone costs `−log p_T(C)` nats per position, before anything is learned.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

_SEARCH_FROM = 1 << 14


@dataclass
class Candidates:
    """Candidates of `B` positions, padded to `K` columns and sorted by probability, the likeliest first.

    `ids [B, K]`; `mask [B, K]` (true where real); `log_p [B, K]`: log of `p_T` renormalised on `C`, −inf at padding;
    `log_mass [B]`: log p_T(C); `capped [B]`: whether `max_candidates` cut the threshold's set.
    """

    ids: Tensor
    mask: Tensor
    log_p: Tensor
    log_mass: Tensor
    capped: Tensor

    def select(self, rows: Tensor) -> Candidates:
        return Candidates(self.ids[rows], self.mask[rows], self.log_p[rows], self.log_mass[rows], self.capped[rows])


def candidates(logits: Tensor, temperature: float, p_t: float, max_candidates: int) -> Candidates:
    """Restrict the LM's next-token distribution.

    Args:
        logits: `[B, V]`, float32.
        temperature: `T > 0` of `p_T = softmax(logits / T)`.
        p_t: threshold in [0, 1).
        max_candidates: maximum number of candidates per position.
    """
    scaled = logits if temperature == 1.0 else logits / temperature
    log_total = scaled.logsumexp(-1, keepdim=True)
    likely = scaled >= log_total + (math.log(p_t) if p_t > 0 else -math.inf)
    found = _search(scaled, likely, max_candidates) if logits.numel() >= _SEARCH_FROM else None
    if found is None:
        wanted = likely.sum(-1).clamp(min=1)
        count = wanted.clamp(max=max_candidates)
        values, ids = scaled.topk(int(count.max()), dim=-1)
    else:
        values, ids, wanted = found
        count = wanted
    mask = torch.arange(ids.shape[1], device=ids.device) < count[:, None]
    values = values.masked_fill(~mask, -math.inf)
    mass = values.logsumexp(-1, keepdim=True)
    return Candidates(
        ids=ids.masked_fill(~mask, 0),
        mask=mask,
        log_p=values - mass,
        log_mass=(mass - log_total).squeeze(-1).clamp(max=0.0),
        capped=wanted > max_candidates,
    )


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
    """Rows and columns of the true entries of `mask [B, V]`, in order. On a CPU numpy is several times faster than
    torch."""
    if mask.device.type != "cpu":
        rows, columns = mask.nonzero(as_tuple=True)
        return rows, columns
    flat = torch.from_numpy(np.flatnonzero(mask.numpy()))
    rows = flat // mask.shape[1]
    return rows, flat - rows * mask.shape[1]


def intersect(first: Candidates, second: Candidates) -> Candidates:
    """Candidates that two proxies share, renormalised (`docs/methods/proxy.md#strength-and-composition`). If they
    share none, the likeliest of the first.

    Both must come from the same logits at the same temperature.
    """
    shared = ((first.ids[:, :, None] == second.ids[:, None, :]) & second.mask[:, None, :]).any(-1) & first.mask
    # Both sets hold the argmax, and both are sorted: column 0 is always shared. The assignment only guards against ties.
    shared[:, 0] = True
    values = first.log_p.masked_fill(~shared, -math.inf)
    mass = values.logsumexp(-1, keepdim=True)
    return Candidates(
        ids=first.ids,
        mask=shared,
        log_p=values - mass,
        log_mass=first.log_mass + mass.squeeze(-1),
        capped=first.capped | second.capped,
    )
