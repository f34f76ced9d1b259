"""A bounded store of tensors that were computed once, in shards that survive a kill.

Every key has a folder. A shard is a safetensors file that is written atomically, so a killed run resumes with the next shard. It
holds a hash of its tensors, and is computed again if that does not fit. Before the store grows beyond `max_gib`, the least
recently used keys are deleted, unless a command is using them.
"""

from __future__ import annotations

import hashlib
import logging
import math
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
from filelock import FileLock
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from frugalign.base.errors import FrugalignError
from frugalign.base.files import check_safetensors, write_atomic, writing
from frugalign.base.parsing import parse_json
from frugalign.engines.sharding import replica
from frugalign.runs.layout import LOCK_FILE
from frugalign.runs.lock import Reading, delete_leftovers, is_held, is_read
from frugalign.runs.processes import from_main, gather_all, is_main_process, local_rows

_USED = "last_used"
_DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "I64": torch.int64, "I32": torch.int32}
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Shards:
    """The shards of a key, in order. `reading` keeps them from being deleted as long as this object lives."""

    files: list[Path]
    reading: Reading | None = None


class ShardStore:
    """A store under `folder`, which is created if missing. `max_gib`: maximum size of all keys together."""

    def __init__(self, folder: str | Path, *, max_gib: float = 20.0) -> None:
        self.folder, self.max_bytes = Path(folder), int(max_gib * 2**30)

    def shards(
        self, key: str, number: int, compute: Callable[[list[int]], Iterator[Mapping[str, Tensor]]], *, needed: int
    ) -> Shards:
        """The `number` shards of a key. All processes call it.

        Args:
            key: the name of its folder, a hash of everything that the tensors depend on.
            compute: called with this process's share of the shards that are missing or damaged; yields the tensors of each, in order.
            needed: bytes that the key takes.

        Raises:
            FrugalignError: a disk that cannot be written.
        """
        place, is_main = self.folder / key, is_main_process()
        if is_main:
            self._make_room(place, needed)
        files = [place / f"shard-{each:05d}.safetensors" for each in range(number)]
        with writing(place):
            place.mkdir(parents=True, exist_ok=True)
            # Another command may be computing the same. The processes of this one share the shards.
            with FileLock(place / LOCK_FILE) if is_main else nullcontext():
                missing: list[int] = []
                if is_main:
                    delete_leftovers(place)
                    missing = [each for each, file in enumerate(files) if not _is_whole(file)]
                reading, missing = Reading(place), from_main(missing)
                if missing:  # a damaged file may be open
                    ShardFile.of.cache_clear()
                    _opened.cache_clear()
                mine = [missing[row] for row in local_rows(len(missing))]
                for each, tensors in zip(mine, compute(mine), strict=True):
                    if replica().leads:
                        write_atomic(files[each], save(dict(tensors), {"hash": _hash(files[each], tensors)}))
                gather_all([])  # all shards are there
                if is_main:
                    write_atomic(place / _USED, "")
        return Shards(files, reading)

    def _make_room(self, keep: Path, needed: int) -> None:
        """Delete keys that nobody uses, least recently used first, until `needed` more bytes fit."""
        if not self.folder.is_dir():
            return
        others = [path for path in self.folder.iterdir() if path.is_dir() and path != keep]
        sizes = {path: _size(path) for path in others}
        total = needed + sum(sizes.values())
        for path in sorted(others, key=_last_used):
            if total <= self.max_bytes:
                return
            if is_held(path / LOCK_FILE) or is_read(path):
                continue
            shutil.rmtree(path, ignore_errors=True)
            total -= sizes[path]
        if total > self.max_bytes:
            _log.warning("The stored states exceed their bound for now, since other commands are using them.")


class ShardFile:
    """A shard that is read by rows of its tensors, each time from the disk.

    A memory map would count every page that was ever read as memory of this process, and so would tensors that stay open. The files that
    were read last stay open, since opening one takes longer than reading some rows.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            header = parse_json(file.read(size).decode())
        self._first = 8 + size
        self._places = {name: about for name, about in header.items() if name != "__metadata__"}

    @staticmethod
    @lru_cache(maxsize=4096)
    def of(path: Path) -> ShardFile:
        """The shard in this file, whose header is read once."""
        return ShardFile(path)

    @property
    def names(self) -> list[str]:
        """The names of its tensors."""
        return list(self._places)

    def rows(self, name: str, start: int = 0, stop: int | None = None) -> Tensor:
        """Rows `start` to `stop` of a tensor, by its place in the file (https://github.com/huggingface/safetensors#format)."""
        about = self._places[name]
        dtype, shape = _DTYPES[about["dtype"]], about["shape"][1:]
        number = (about["shape"][0] if stop is None else stop) - start
        a_row = math.prod(shape) * dtype.itemsize
        if not number or not a_row:
            return torch.empty(number, *shape, dtype=dtype)
        content = bytearray(number * a_row)
        os.preadv(_opened(self._path).descriptor, [content], self._first + about["data_offsets"][0] + start * a_row)
        return torch.frombuffer(content, dtype=dtype).reshape(number, *shape)


class _Opened:
    """An open file, closed when nothing holds it."""

    def __init__(self, path: Path) -> None:
        self.descriptor = os.open(path, os.O_RDONLY)

    def __del__(self) -> None:
        os.close(self.descriptor)


@lru_cache(maxsize=128)
def _opened(path: Path) -> _Opened:
    return _Opened(path)


def _is_whole(shard: Path) -> bool:
    """Whether a shard is there and holds what was stored, by its hash."""
    if not shard.is_file():
        return False
    try:
        check_safetensors(shard)
        with safe_open(shard, framework="pt") as file:
            stored = (file.metadata() or {}).get("hash")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 — it is no dict
    except (FrugalignError, SafetensorError, OSError, RuntimeError):  # damaged: computed again
        return False
    return stored == _hash(shard, tensors)


def _hash(shard: Path, tensors: Mapping[str, Tensor]) -> str:
    """A hash of the tensors with their names, types and shapes, and of the place of the shard in its key."""
    digest = hashlib.blake2b(f"{shard.parent.name}/{shard.name}".encode(), digest_size=16)
    for name in sorted(tensors):
        value = tensors[name].contiguous()
        digest.update(f"\n{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _size(place: Path) -> int:
    """The bytes of a key. Another command may be deleting it."""
    try:
        return sum(file.stat().st_size for file in place.iterdir())
    except FileNotFoundError:
        return 0


def _last_used(place: Path) -> float:
    marker = place / _USED
    try:
        return (marker if marker.is_file() else place).stat().st_mtime
    except FileNotFoundError:
        return 0.0
