"""Arrow tables and numbers that are too large for memory: written to a file once, and mapped from there.

Small ones stay in memory, as `datasets` keeps them. What was made of large data is kept in the cache of `datasets`
(`$HF_DATASETS_CACHE/frugalign`), under a hash of everything that it depends on, so that a later start does not make it again. Files
appear there whole. They can be deleted at any time.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa

from frugalign.base.files import replacing, writing

LARGE = 8 << 20
"""Bytes of Arrow data, at most, that stay in memory."""
ROWS = 10_000
"""Rows that are held as Python objects at once."""
_FORM = 2
"""How cached files are made. It is a part of every key, so that those of another version are not read."""


def cache_folder() -> Path:
    """Where large data are kept, below the cache of `datasets`."""
    home = os.environ.get("HF_HOME") or os.path.join(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "huggingface")
    return Path(os.environ.get("HF_DATASETS_CACHE") or os.path.join(home, "datasets")).expanduser() / "frugalign"


def key_of(*parts: Any) -> str:
    """A hash of plain values, to name what was made of them."""
    return hashlib.sha256(json.dumps([_FORM, *parts], sort_keys=True, default=str).encode()).hexdigest()[:24]


def join(tables: Sequence[pa.Table]) -> pa.Table:
    """Tables below each other. Whole numbers and fractions share a type; a column that one of them lacks is null.

    Raises:
        pyarrow.ArrowException: a column has two types.
    """
    return pa.concat_tables(list(tables), promote_options="permissive")


class Spill:
    """Keeps tables: in memory up to `LARGE` bytes, the others mapped from a temporary file that ends with them."""

    def __init__(self) -> None:
        self._size = 0
        self._file: IO[bytes] | None = None

    @property
    def is_large(self) -> bool:
        """Whether a table went to the file."""
        return self._file is not None

    def keep(self, table: pa.Table) -> pa.Table:
        """The same table, which takes no memory from now on if there are many.

        Raises:
            FrugalignError: a full disk, and the like.
        """
        self._size += table.nbytes
        if self._size <= LARGE or not len(table):
            return table
        folder = cache_folder()
        with writing(folder):
            if self._file is None:
                folder.mkdir(parents=True, exist_ok=True)
                self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 — it lives as long as the tables
            file = self._file
            # A map begins at a page.
            start = -(-file.seek(0, os.SEEK_END) // mmap.ALLOCATIONGRANULARITY) * mmap.ALLOCATIONGRANULARITY
            file.seek(start)
            with pa.ipc.new_stream(file, table.schema) as stream:
                stream.write_table(table)
            file.flush()
            mapped = mmap.mmap(file.fileno(), file.tell() - start, access=mmap.ACCESS_READ, offset=start)
        return pa.ipc.open_stream(pa.py_buffer(mapped)).read_all()


def kept_table(key: str | None, make: Callable[[], Iterable[pa.Table]]) -> pa.Table:
    """The tables that `make` yields, joined.

    A large one is mapped from a file, which is kept under `key`; the next call with this key makes nothing. None: it is not kept.

    Raises:
        FrugalignError: a full disk, or whatever `make` raises.
    """
    path = None if key is None else cache_folder() / f"{key}.arrow"
    if path is not None and path.is_file():
        return mapped(path)
    spill = Spill()
    found = join([spill.keep(table) for table in make()])
    if path is None or not spill.is_large:
        return found
    store_table(found, path)
    return mapped(path)


def store_table(table: pa.Table, path: Path) -> None:
    """Write a table whole or not at all."""
    with replacing(path) as file, pa.ipc.new_stream(file, table.schema) as stream:
        for batch in table.to_batches(max_chunksize=ROWS):
            stream.write_batch(batch)


def mapped(path: Path) -> pa.Table:
    """A stored table, mapped into memory."""
    return pa.ipc.open_stream(pa.memory_map(str(path))).read_all()


def kept_numbers(key: str | None, make: Callable[[], np.ndarray[Any, Any]]) -> np.ndarray[Any, Any]:
    """What `make` returns, kept under `key`. None: it is not kept."""
    if key is None:
        return make()
    path = cache_folder() / f"{key}.npy"
    if not path.is_file():
        with replacing(path) as file:
            np.save(file, make(), allow_pickle=False)
    return np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))
