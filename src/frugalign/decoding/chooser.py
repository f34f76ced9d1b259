"""The protocols of whatever chooses tokens, such as a proxy, and the plain base as the simplest guide."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from frugalign.decoding.noise import Noise, draw
from frugalign.decoding.waits import places_to_do

STREAM_EMIT = 0
STREAM_ORDER = 1
STREAM_ACCEPT = 2
STREAM_REJECTIONS = 3
STREAM_TAIL = 4

_HEAD = 64

Lookahead = Callable[[Tensor], Tensor]
"""`candidate_ids [B, K]` -> hidden states after feeding each candidate, `[B, K, D]` float32."""


@dataclass
class Emission:
    """What a guide chose at one position.

    `token [B]`. The KL to the base at temperature 1, in nats, exact over the full vocabulary, is the sum of three parts, each
    `[B]`: `kl_temperature` = E_π[log p_T − log p_1], `kl_restriction` = −log p_T(C) and `kl_choice` = KL(π ‖ p).
    `details`: what the guide passes to the loop's observer.
    """

    token: Tensor
    kl_temperature: Tensor | None = None
    kl_restriction: Tensor | None = None
    kl_choice: Tensor | None = None
    details: Any = None


@dataclass(frozen=True)
class TokenTrace:
    """One emitted token, and the proposals rejected before it.

    `acceptance`: of the emitted token; None if there was only one candidate. `rejected`: (token, acceptance), in no
    order. The token is None where all tokens that are not candidates were rejected together.
    """

    token: int
    acceptance: float | None
    rejected: tuple[tuple[int | None, float], ...]


class Chooser(Protocol):
    """Chooses tokens for the decoding loop from the LM head's input and logits."""

    needs_hidden: bool
    needs_lookahead: bool

    def emit(
        self, h: Tensor, logits: Tensor, noise: Noise, *, do_sample: bool = True, lookahead: Lookahead | None = None
    ) -> Emission:
        """Choose one token per row, greedily if `do_sample` is false."""
        ...

    def trace(self, emission: Emission, noise: Noise) -> list[TokenTrace]:
        """The proposals behind an emission, row by row, for display."""
        ...


class Guide(Chooser, Protocol):
    """A chooser whose distribution depends only on the LM head's input and logits, so that hooks on a model can use
    it."""

    temperature: float

    def log_probs(self, h: Tensor, logits: Tensor, lookahead: Lookahead | None = None) -> Tensor:
        """`h [B, D]`, `logits [B, V]` -> the normalised log π over the whole vocabulary, `[B, V]`."""
        ...


def temperature_gain(logits: Tensor, temperature: float) -> Tensor | None:
    """`log p_T − log p_1` of every token, `[B, V]`, 0 where both are −inf. None at temperature 1, where it is zero."""
    if temperature == 1.0:
        return None
    gain = torch.log_softmax(logits / temperature, -1) - torch.log_softmax(logits, -1)
    return gain.nan_to_num_(nan=0.0, neginf=0.0)


def draw_token(scores: Tensor, noise: Noise) -> Tensor:
    """Draw from `scores [B, V]`, unnormalised log-probabilities: token ids `[B]`.

    All tokens beyond the 64 likeliest share one entry, since the maximum of their Gumbels is again a Gumbel. If that
    entry wins, the token is drawn by inverse CDF.
    """
    vocabulary = scores.shape[-1]
    head, ids = scores.topk(min(_HEAD, vocabulary), -1)
    if vocabulary > _HEAD:
        # log(total − head), from the head's share of the total.
        total, within = scores.logsumexp(-1, keepdim=True), head.logsumexp(-1, keepdim=True)
        tail = total + torch.log(-torch.expm1((within - total).double().clamp(max=-1e-12)))
        tail = tail.masked_fill(head[:, -1:] == -torch.inf, -torch.inf)  # nothing is left beyond
        head, ids = (
            torch.cat([head.double(), tail], -1),
            torch.cat([ids, torch.full_like(ids[:, :1], vocabulary)], -1),
        )
    column = (head + noise.gumbel(STREAM_EMIT, ids)).argmax(-1, keepdim=True)
    token = ids.gather(-1, column).squeeze(-1)
    is_beyond = token == vocabulary
    rows = places_to_do(is_beyond)
    if vocabulary > _HEAD and len(rows):
        rest = scores[rows].scatter(-1, ids[rows, :_HEAD], -torch.inf).softmax(-1)
        drawn = draw(rest, noise.uniform(STREAM_TAIL)[rows])
        token[rows] = torch.where(is_beyond[rows], drawn, token[rows])
    return token


class BaseGuide:
    """The base model itself: `p_T` over its whole vocabulary.

    Tokens are drawn by the Gumbel-max trick, which ties the noise to tokens. Rounding differs between batches; it
    changes a draw about thirty times less often than with an inverse CDF. Under the same noise, a guided model also
    stays close to its base.
    """

    needs_hidden = False
    needs_lookahead = False

    def __init__(self, temperature: float) -> None:
        self.temperature = temperature

    def log_probs(self, h: Tensor, logits: Tensor, lookahead: Lookahead | None = None) -> Tensor:
        return torch.log_softmax(logits / self.temperature, -1)

    def emit(
        self, h: Tensor, logits: Tensor, noise: Noise, *, do_sample: bool = True, lookahead: Lookahead | None = None
    ) -> Emission:
        if not do_sample:
            return Emission(token=logits.argmax(-1))
        zero = torch.zeros(logits.shape[0], device=logits.device)
        gain, scaled = temperature_gain(logits, self.temperature), logits / self.temperature
        warmth = zero if gain is None else (scaled.softmax(-1) * gain).sum(-1)
        return Emission(draw_token(scaled, noise), kl_temperature=warmth, kl_restriction=zero, kl_choice=zero)

    def trace(self, emission: Emission, noise: Noise) -> list[TokenTrace]:
        return [TokenTrace(token=int(token), acceptance=None, rejected=()) for token in emission.token]
