"""π over the whole vocabulary, for scores of texts that others wrote."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from frugalign.decoding.chooser import Lookahead
from frugalign.proxy.guide import ProxyGuide


class FullSupport:
    """A guide whose π is above 0 wherever the base is, so that every text has a finite log-likelihood.

    A proxy that keeps the tail is already such a guide. One that drops it forbids all tokens but its candidates; here those tokens keep the
    base's probability, and the candidates share the rest as π does. At strength 0 both are the base.
    """

    def __init__(self, guide: ProxyGuide) -> None:
        self.guide = guide
        self.temperature = guide.temperature
        self.needs_hidden, self.needs_lookahead = guide.needs_hidden, guide.needs_lookahead

    def log_probs(self, h: Tensor, logits: Tensor, lookahead: Lookahead | None = None) -> Tensor:
        """`h [B, D]`, `logits [B, V]` -> log π `[B, V]`, normalised, float32."""
        log_pi = self.guide.log_probs(h, logits, lookahead)
        if self.guide.tail == "keep":
            return log_pi
        log_p = torch.log_softmax(logits.float() / self.temperature, -1)
        is_candidate = log_pi > -math.inf
        mass = log_p.masked_fill(~is_candidate, -math.inf).logsumexp(-1, keepdim=True)
        return torch.where(is_candidate, log_pi + mass, log_p)
