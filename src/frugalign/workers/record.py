"""What travels between a trainer and its workers: plain values and tensors by name, as bytes. Nothing of it is pickled by us."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

_LENGTH = 8


@dataclass(frozen=True)
class Record:
    """`values`: as JSON holds them. `tensors`: on any device."""

    values: Mapping[str, Any] = field(default_factory=dict)
    tensors: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Piece:
    """A piece of work, and what it adds to the progress: `size` of a `unit` of `base.progress`."""

    record: Record
    unit: str = ""
    size: float = 0.0


class Pieces(Sequence[Piece]):
    """`n` pieces that are made when they are asked for. `make` gives the piece of a place, each time the same."""

    def __init__(self, n: int, make: Callable[[int], Piece]) -> None:
        self._n, self._make = n, make

    def __len__(self) -> int:
        return self._n

    def __getitem__(self, place: Any) -> Any:
        if not 0 <= place < self._n:
            raise IndexError(place)
        return self._make(place)


def pack(record: Record) -> bytes:
    """The length of the values as a little-endian u64, the values as JSON, and the tensors as safetensors."""
    values = json.dumps(record.values, allow_nan=False).encode()
    content = b""
    if record.tensors:
        from safetensors.torch import save

        content = save({name: value.detach().cpu().contiguous() for name, value in record.tensors.items()})
    return len(values).to_bytes(_LENGTH, "little") + values + content


def unpack(content: bytes) -> Record:
    """What `pack` packed, on the CPU."""
    start = _LENGTH + int.from_bytes(content[:_LENGTH], "little")
    values = json.loads(content[_LENGTH:start])
    if start == len(content):
        return Record(values)
    from safetensors.torch import load

    return Record(values, load(content[start:]))
