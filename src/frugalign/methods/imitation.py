"""What a teacher says about the candidates of a base: all that a proxy needs to imitate it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from frugalign.proxy.candidates import Candidates, beyond

_RULED_OUT = -1e4


@dataclass(frozen=True)
class Imitated:
    """What a teacher says at `N` positions: its `log_p [N, K]` of every column, and `rest [N]`, the part of `KL(teacher ‖ π)` that lies
    within the tail, on which a proxy has no influence."""

    log_p: Tensor
    rest: Tensor


def imitate(teacher: Tensor, base: Tensor, chosen: Candidates) -> Imitated:
    """What a teacher says about the columns of a base with its tail kept.

    Args:
        teacher, base: logits over their temperatures, `[N, V]`.
        chosen: the base's columns.
    """
    log_p, log_base = torch.log_softmax(teacher, -1), torch.log_softmax(base, -1)
    tail = beyond(log_p, chosen.ids, chosen.listed)
    mass = tail.logsumexp(-1, keepdim=True)
    columns = log_p.gather(-1, chosen.ids.masked_fill(~chosen.listed, 0))
    columns = torch.where(chosen.listed, columns, -math.inf)
    # Finite where the teacher rules a token out, since 0·∞ is not 0.
    columns = torch.where(chosen.tail, mass, columns).clamp(min=_RULED_OUT)
    within = log_base - beyond(log_base, chosen.ids, chosen.listed).logsumexp(-1, keepdim=True)
    gap = (tail - mass - within).masked_fill(tail == -math.inf, 0.0)
    return Imitated(columns, (tail.exp() * gap).sum(-1))
