"""The few operations that numpy and torch spell differently, so that the mathematics is written once for both.

Everything else in this package uses what both have in common: operators, indexing, `sum(axis)`, `prod(axis)` and `shape`.
torch is used only if a torch tensor comes in, and so only where the engine has imported it.
"""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager
from typing import Any, TypeAlias

import numpy as np

Array: TypeAlias = Any
"""A numpy array or a torch tensor. The two have no type in common."""


class NumpyOps:
    """Operations on numpy arrays. `like` says which dtype and device an operation's result has."""

    exp, log, log1p, expm1 = np.exp, np.log, np.log1p, np.expm1
    logaddexp, where, isfinite = np.logaddexp, staticmethod(np.where), np.isfinite

    def quiet(self) -> AbstractContextManager[Any]:
        """A block in which `log(0) = −inf` is not worth a warning, and torch records nothing."""
        return np.errstate(divide="ignore", over="ignore", under="ignore", invalid="ignore")

    def place(self, value: np.ndarray, like: Array) -> Array:
        """A bundle's array as this library's, beside `like`, in its own dtype."""
        return value

    def where_is(self, like: Array) -> str:
        """The device of an array."""
        return "numpy"

    def floats(self, value: Array) -> Array:
        return np.asarray(value, dtype=np.float32)

    def doubles(self, value: Array) -> Array:
        return np.asarray(value, dtype=np.float64)

    def copy(self, value: Array) -> Array:
        return value.copy()

    def full(self, shape: tuple[int, ...], value: float, like: Array) -> Array:
        return np.full(shape, value, dtype=like.dtype)

    def none_of(self, like: Array) -> Array:
        return np.zeros(like.shape, dtype=bool)

    def counted(self, count: int, like: Array) -> Array:
        """0, 1, … `count` − 1."""
        return np.arange(count, dtype=like.dtype)

    def joined(self, parts: list[Array]) -> Array:
        return np.concatenate(parts, axis=-1)

    def largest(self, value: Array) -> Array:
        """The largest of each row, `[N, 1]`."""
        return value.max(axis=-1, keepdims=True)

    def smallest(self, value: Array) -> Array:
        return value.min(axis=-1, keepdims=True)

    def at_least(self, value: Array, least: float) -> Array:
        return np.maximum(value, least)

    def at_most(self, value: Array, most: float) -> Array:
        return np.minimum(value, most)

    def absolute(self, value: Array) -> Array:
        return np.abs(value)

    def top(self, value: Array, count: int) -> Array:
        """Columns `[N, count]` of the largest of each row, in any order."""
        if count >= value.shape[-1]:
            return np.broadcast_to(np.arange(value.shape[-1]), value.shape)
        return np.argpartition(-value, count - 1, axis=-1)[:, :count]

    def gather(self, value: Array, columns: Array) -> Array:
        return np.take_along_axis(value, columns, axis=-1)

    def put(self, value: Array, columns: Array, new: Any) -> None:
        """Write `new` at `columns [N, K]` of `value [N, V]`, in place."""
        np.put_along_axis(value, columns, new, axis=-1)

    def pairs(self, mask: Array) -> tuple[Array, Array]:
        """Rows and columns of the true entries."""
        rows, columns = np.divmod(np.flatnonzero(mask), mask.shape[1])
        return rows, columns


class TorchOps:
    """The same on torch tensors, on whatever device they are."""

    def __init__(self) -> None:
        import torch

        self._torch = torch
        self.exp, self.log, self.log1p, self.expm1 = torch.exp, torch.log, torch.log1p, torch.expm1
        self.logaddexp, self.where, self.isfinite = torch.logaddexp, torch.where, torch.isfinite

    def quiet(self) -> AbstractContextManager[Any]:
        return self._torch.no_grad()

    def place(self, value: np.ndarray, like: Array) -> Array:
        return self._torch.from_numpy(value).to(like.device)

    def where_is(self, like: Array) -> str:
        return str(like.device)

    def floats(self, value: Array) -> Array:
        return value.float()

    def doubles(self, value: Array) -> Array:
        return value.double()

    def copy(self, value: Array) -> Array:
        return value.clone()

    def full(self, shape: tuple[int, ...], value: float, like: Array) -> Array:
        return self._torch.full(shape, value, dtype=like.dtype, device=like.device)

    def none_of(self, like: Array) -> Array:
        return self._torch.zeros(like.shape, dtype=self._torch.bool, device=like.device)

    def counted(self, count: int, like: Array) -> Array:
        return self._torch.arange(count, dtype=like.dtype, device=like.device)

    def joined(self, parts: list[Array]) -> Array:
        return self._torch.cat(parts, -1)

    def largest(self, value: Array) -> Array:
        return value.amax(-1, keepdim=True)

    def smallest(self, value: Array) -> Array:
        return value.amin(-1, keepdim=True)

    def at_least(self, value: Array, least: float) -> Array:
        return value.clamp(min=least)

    def at_most(self, value: Array, most: float) -> Array:
        return value.clamp(max=most)

    def absolute(self, value: Array) -> Array:
        return value.abs()

    def top(self, value: Array, count: int) -> Array:
        return value.topk(min(count, value.shape[-1]), dim=-1).indices

    def gather(self, value: Array, columns: Array) -> Array:
        return value.gather(-1, columns)

    def put(self, value: Array, columns: Array, new: Any) -> None:
        if isinstance(new, bool | float):
            value.scatter_(-1, columns, new)
        else:
            value.scatter_(-1, columns, new.expand(columns.shape))

    def pairs(self, mask: Array) -> tuple[Array, Array]:
        rows, columns = mask.nonzero(as_tuple=True)
        return rows, columns


_OPS: dict[str, Any] = {}


def ops_of(value: Array) -> Any:
    """The operations for this array: `NumpyOps` or `TorchOps`."""
    torch = sys.modules.get("torch")
    kind = TorchOps if torch is not None and isinstance(value, torch.Tensor) else NumpyOps
    if kind.__name__ not in _OPS:
        _OPS[kind.__name__] = kind()
    return _OPS[kind.__name__]


def host(value: Any) -> np.ndarray:
    """A numpy array of a list, an array or a tensor on any device. bfloat16, which numpy lacks, becomes float32."""
    if hasattr(value, "detach"):
        value = value.detach()
        value = (value.float() if value.is_floating_point() else value).cpu().numpy()
    return np.asarray(value)


def logsumexp(ops: Any, value: Array) -> Array:
    """`log Σ exp` of each row, `[N, 1]`. A row of −inf gives −inf."""
    most = ops.largest(value)
    most = ops.where(ops.isfinite(most), most, 0.0)
    return most + ops.log(ops.exp(value - most).sum(-1)[:, None])


def log_softmax(ops: Any, value: Array) -> Array:
    return value - logsumexp(ops, value)


def logsigmoid(ops: Any, value: Array) -> Array:
    """`log σ(x)`, exact in both tails."""
    return ops.at_most(value, 0.0) - ops.log1p(ops.exp(-ops.absolute(value)))
