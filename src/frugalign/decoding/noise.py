"""Noise as a pure function of (seed, epoch, prompt, sample, position): a counter-based generator in plain tensor arithmetic.

A completion therefore does not depend on its batch. A rollout can be reproduced after a crash. The base and a guided
model can run on the same noise. The mixing function is splitmix64's finaliser (Steele, Lea and Flood, 2014).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from frugalign.base.errors import FrugalignError

_GOLDEN = 0x9E3779B97F4A7C15 - 2**64
_MIX_1 = 0xBF58476D1CE4E5B9 - 2**64
_MIX_2 = 0x94D049BB133111EB - 2**64


def _shift(x: Tensor, bits: int) -> Tensor:
    # int64 shifts are arithmetic: mask the copied sign bits away.
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _mix(x: Tensor) -> Tensor:
    x = (x ^ _shift(x, 30)) * _MIX_1
    x = (x ^ _shift(x, 27)) * _MIX_2
    return x ^ _shift(x, 31)


def _fold(key: Tensor, value: Tensor | int) -> Tensor:
    if isinstance(value, int):
        # Wrap the product as int64 would; a Python integer does not overflow.
        product: Tensor | int = (_GOLDEN * (value + 1) + 2**63) % 2**64 - 2**63
    else:
        product = _GOLDEN * (value + 1)
    return _mix((key ^ product) + _GOLDEN)


def row_keys(seed: int, epoch: int, prompt_index: Sequence[int], sample_index: Sequence[int]) -> Tensor:
    """One int64 key per row, `[B]`. `prompt_index`: the prompt's number in its data set. `sample_index`: the sample's
    number.

    Raises:
        FrugalignError: the seed exceeds 64 bits.
    """
    if not -(2**63) <= seed < 2**63:
        raise FrugalignError(f"The seed {seed} does not fit into 64 bits.")
    key = _fold(torch.full((len(prompt_index),), seed, dtype=torch.int64), epoch)
    key = _fold(key, torch.tensor(list(prompt_index), dtype=torch.int64))
    return _fold(key, torch.tensor(list(sample_index), dtype=torch.int64))


def alternative_keys(keys: Tensor, number: int) -> Tensor:
    """Keys `[B]` for another completion of every row, one set per `number`. 0 gives the rows' own keys."""
    # Positions are folded in as 0, 1, …, so negative numbers are free.
    return keys if number == 0 else _fold(keys, -number)


@dataclass(frozen=True)
class Noise:
    """The noise of one position of a batch: `keys [B]`, and the position in the completion, one for all rows or `[B]`."""

    keys: Tensor
    position: int | Tensor

    def select(self, rows: Tensor) -> Noise:
        """The noise of these rows, int64 `[b]`."""
        position = self.position if isinstance(self.position, int) else self.position[rows]
        return Noise(self.keys[rows], position)

    def uniform(self, stream: int, index: Tensor | None = None) -> Tensor:
        """Uniform draws in the open interval (0, 1), float64: `[B]`, or `[B, K]` for `index [B, K]` (token ids, say).

        Equal (key, position, stream, index) give equal draws. Streams separate independent uses.
        """
        key = _fold(_fold(self.keys, self.position), stream)
        if index is not None:
            key = _fold(key[:, None], index)
        # 52 bits and a half: exactly representable, never 0 or 1.
        return (_shift(key, 12).double() + 0.5) * 2.0**-52

    def gumbel(self, stream: int, index: Tensor) -> Tensor:
        """Standard Gumbel draws `[B, K]`, float64."""
        return -torch.log(-torch.log(self.uniform(stream, index)))


def draw(weights: Tensor, uniform: Tensor) -> Tensor:
    """Inverse-CDF draw of a column per row: `weights [B, K]` (non-negative, not normalised), `uniform [B]` -> `[B]` int64.

    A column of weight zero is never drawn.
    """
    # In float32 a token less likely than 6e-8 would add nothing to those before it, and large vocabularies have many.
    cumulative = weights.cumsum(-1, dtype=torch.float64)
    target = uniform.to(cumulative.dtype)[:, None] * cumulative[:, -1:]
    # `right=True`: the first column whose cumulative weight exceeds the target, so flat stretches (zero weights) are skipped.
    column = torch.searchsorted(cumulative, target, right=True).squeeze(-1)
    # Rounding of the product can reach the total itself: take the last column that has weight.
    last = (cumulative < cumulative[:, -1:]).sum(-1)
    return torch.minimum(column, last)
