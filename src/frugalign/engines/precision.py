"""Whether two models are one model in two precisions: each weight of one is a rounded weight of the other.

A fingerprint's hashes cannot tell that. So it also keeps a sample of the weights, from which the steps of their formats are
read: the spacing of bfloat16 at a value, or the grid of a quantised block. Rounding moves a weight by half a step. Training
moves it by less than four-bit rounding does, so the size of a difference alone would say nothing.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Collection, Sequence

import numpy as np
import torch
from torch import Tensor

from frugalign.engines.sharding import gathered

_BLOCK = 16
"""Neighbours in a row that quantised formats scale together: 32 or more in most, 16 in some."""
_MOST = 128
"""Blocks in a sample, which is 8 KB of float32."""
_OF_LARGEST = 8
"""Blocks from the largest matrix, which is an embedding."""
_LEVELS = 255
"""Steps between the smallest and the largest weight of a block in the finest format that has a grid."""
_FEWEST_VALUES = 4
"""A block of fewer different weights lies on any grid: a norm's may all be 1."""
_NEAR_GRID = 0.1
"""How far a weight may lie from the grid of its block, in steps."""
_FARTHEST = 0.35
"""The same where a floating-point type added its own error. Farther, and any weights would lie near a grid."""
_MANY, _NEARLY_ALL = 0.75, 0.98
"""Shares of a block's weights that rounding moves by half a step at most, since formats clip a few, and of such blocks."""
_COARSE = 1 / 48
"""A step that is coarse for its block's largest weight, as those of four-bit formats are."""
_RATIO = 1.5
"""Between the steps of two precisions. Those of bfloat16 and of eight bits are the closest, about four."""
_SLACK = 1.001
_MOVED = 0.5
"""Rounding moves at least this share of the blocks."""
_BITS = {"bfloat16": 7, "float16": 10, "float32": 23}
"""Bits of the mantissa."""


def sample_weights(values: Sequence[tuple[str, Tensor]], by_column: Collection[str] = ()) -> str | None:
    """A sample of a model's weights, as text. Equal names and shapes are sampled at equal places.

    Args:
        values: named parameters. Quantised ones are left out, as they are stored in a form of their own, and so are vectors, which
            most formats keep as they are.
        by_column: names of matrices that are stored as `[in, out]`.

    Returns:
        None if no matrix has rows of 16 values.
    """
    able = []
    for name, value in values:
        if value.is_floating_point() and not hasattr(value, "quant_state") and value.dim() > 1 and not value.is_meta:
            turned = value.detach().T if name in by_column else value.detach()
            able += [(name, turned)] if turned.shape[-1] >= _BLOCK else []
    if not able:
        return None
    name, value = max(able, key=lambda named: named[1].numel())
    largest = name, gathered(value)
    places = np.unique(np.linspace(0, len(able) - 1, min(len(able), _MOST - _OF_LARGEST)).round().astype(int))
    blocks = [_block(name, value, 0) for name, value in (able[place] for place in places)]
    blocks += [_block(largest[0], largest[1], 1 + number) for number in range(_OF_LARGEST)]
    return base64.b64encode(torch.stack(blocks).numpy().astype("<f4").tobytes()).decode()


def _block(name: str, value: Tensor, number: int) -> Tensor:
    """Neighbours in some row of a weight, float32 `[16]`."""
    drawn = int.from_bytes(hashlib.sha256(f"{name}:{number}".encode()).digest()[:8], "little")
    rows = gathered(value).reshape(-1, value.shape[-1])
    start = _BLOCK * (drawn // len(rows) % (value.shape[-1] // _BLOCK))
    return rows[drawn % len(rows), start : start + _BLOCK].float().cpu()


def rounded_by(one: str | None, other: str | None, *, few: bool = False) -> float | None:
    """How far rounding moved one sample from the other, as a share of the size of what moved. None if they differ by more than that.

    One side must be coarser than the other, or both quantised: two models in bfloat16 that differ are two models. So are two that
    differ in few places.

    Args:
        few: whether rounding may have moved few weights, or none of the sample, as float16 does with what was bfloat16.
    """
    mine, theirs = _read(one), _read(other)
    if mine is None or theirs is None or mine.shape != theirs.shape:
        return None
    moved = (mine != theirs).any(1)
    if not few and moved.mean() < _MOVED:
        return None
    if not moved.any():
        return 0.0
    mine, theirs = mine[moved], theirs[moved]
    steps, others = _steps(mine), _steps(theirs)
    ratio = np.exp(np.abs(np.log(np.median(steps, 1)) - np.log(np.median(others, 1))))
    coarse = [step.max(1) > _COARSE * np.abs(block).max(1) for step, block in ((steps, mine), (others, theirs))]
    within = np.abs(mine - theirs) <= (steps + others) / 2 * _SLACK
    fits = ((ratio >= _RATIO) | (coarse[0] & coarse[1])) & (within.mean(1) >= _MANY)
    is_rounding = fits.mean() >= _NEARLY_ALL
    return float(np.linalg.norm(mine - theirs) / np.linalg.norm(mine).clip(1e-30)) if is_rounding else None


def _read(sample: str | None) -> np.ndarray | None:
    """The blocks of a sample, float64 `[n, 16]`. None if it is damaged."""
    try:
        values = np.frombuffer(base64.b64decode(sample or "", validate=True), "<f4").astype(np.float64)
    except ValueError:
        return None
    whole = values.size and values.size % _BLOCK == 0 and np.isfinite(values).all()
    return values.reshape(-1, _BLOCK) if whole else None


def _steps(blocks: np.ndarray) -> np.ndarray:
    """The step of each weight's format, `[n, 16]`: that of its block's grid if there is one, and of its floating-point type."""
    exact = blocks.astype(np.float32)
    is_bfloat16 = ((exact.view(np.uint32) & 0xFFFF) == 0).all(1)
    with np.errstate(over="ignore"):
        is_float16 = (exact.astype(np.float16).astype(np.float32) == exact).all(1)
    bits = np.where(is_bfloat16, _BITS["bfloat16"], np.where(is_float16, _BITS["float16"], _BITS["float32"]))[:, None]
    exponent = np.frexp(blocks)[1] - 1
    floating = np.ldexp(1.0, np.where(blocks == 0, -126, exponent) - bits)
    floating = np.where(is_float16[:, None] & ~is_bfloat16[:, None], np.maximum(floating, 2.0**-24), floating)
    found: np.ndarray = floating + _grids(blocks, bits)
    return found


def _grids(blocks: np.ndarray, bits: np.ndarray) -> np.ndarray:
    """The step of each block's grid, `[n, 1]`: the widest on which all its weights lie. 0 if there is none.

    Weights of a grid that were rounded to a floating-point type lie beside it, so a fine grid cannot be seen in few bits.
    """
    found = np.zeros((len(blocks), 1))
    varied = (np.diff(np.sort(blocks, 1), axis=1) > 0).sum(1, keepdims=True) >= _FEWEST_VALUES - 1
    lowest = blocks.min(1, keepdims=True)
    for origin, span in (
        (0.0, np.abs(blocks).max(1, keepdims=True)),
        (lowest, blocks.max(1, keepdims=True) - lowest),
    ):
        for levels in range(1, _LEVELS + 1):
            places = (blocks - origin) / np.where(varied, span, 1.0) * levels
            error = _NEAR_GRID + levels * 2.0 ** -bits.astype(float)
            near = (np.abs(places - places.round()) <= error).all(1, keepdims=True) & (error <= _FARTHEST)
            found = np.where(near & varied, np.maximum(found, span / levels), found)
    return found
