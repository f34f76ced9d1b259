"""The feature store: a model's endpoint states on a list of texts, computed once and kept on disk in shards.

Every key (model, tokenizer, layers, texts) has a folder. A shard is a safetensors file that is written atomically, so a killed
run resumes with the next shard. It holds a hash of its states, and is computed again if that or its shape does not fit. The
store is bounded: before it grows beyond `max_gib`, the least recently used keys are deleted, unless a command is using them.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from filelock import FileLock
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from frugalign.base.errors import FrugalignError
from frugalign.base.files import check_safetensors, write_atomic, writing
from frugalign.base.ledger import Ledger
from frugalign.base.progress import FED, work
from frugalign.base.wording import pluralize
from frugalign.engines.fingerprints import fingerprint
from frugalign.engines.states import endpoint_states
from frugalign.engines.transformers import causal_lm
from frugalign.runs.layout import LOCK_FILE
from frugalign.runs.lock import Reading, delete_leftovers, is_held, is_read
from frugalign.runs.progress import say_size

_SHARD_BYTES = 64 * 2**20
_SHARD_TOKENS = 8192
"""Tokens of a shard, on average. A kill loses no more than one shard."""
_IN_MEMORY = 512 * 2**20
_USED = "last_used"
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Features:
    """`N` rows of states `[layers, D]` in shards. Index with a list or a tensor of rows to get `[n, layers, D]` float32.

    Up to 512 MiB are read into memory once. Larger features are memory-mapped and read row by row.
    """

    shards: list[Path]
    rows_per_shard: int
    shape: tuple[int, int, int]
    reading: Reading | None = None
    """Keeps the shards from being deleted as long as this object lives."""

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: Sequence[int] | Tensor) -> Tensor:
        if self._memory is not None:
            return self._memory[torch.as_tensor(rows, dtype=torch.long)]
        wanted = [int(row) for row in rows]
        out = torch.empty(len(wanted), *self.shape[1:])
        by_shard: dict[int, list[int]] = {}
        for place, row in enumerate(wanted):
            by_shard.setdefault(row // self.rows_per_shard, []).append(place)
        for shard, places in by_shard.items():
            with safe_open(self.shards[shard], framework="pt") as file:
                states = file.get_slice("states")
                inside = [wanted[place] % self.rows_per_shard for place in places]
                # A few rows are cheaper slice by slice, many rows at once.
                if len(inside) * 4 < self.rows_per_shard:
                    for place, row in zip(places, inside, strict=True):
                        out[place] = states[row : row + 1][0].float()
                else:
                    out[places] = file.get_tensor("states")[inside].float()
        return out

    @cached_property
    def _memory(self) -> Tensor | None:
        """All rows, if they are small enough to stay in memory."""
        if math.prod(self.shape) * 4 > _IN_MEMORY:
            return None
        parts = [load_file(shard)["states"].float() for shard in self.shards]
        return torch.cat(parts) if parts else torch.empty(self.shape)


@dataclass(frozen=True)
class LayerColumns:
    """Some of the layers of `features`, by their columns. It reads like `Features`."""

    features: Features
    columns: list[int]

    def __len__(self) -> int:
        return len(self.features)

    def __getitem__(self, rows: Sequence[int] | Tensor) -> Tensor:
        return self.features[rows][:, self.columns]


States = Features | LayerColumns


class FeatureStore:
    """A store of states under `folder`.

    Args:
        folder: created if missing.
        max_gib: maximum size of all keys together.
    """

    def __init__(self, folder: str | Path, *, max_gib: float = 20.0) -> None:
        self.folder, self.max_bytes = Path(folder), int(max_gib * 2**30)

    def features(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        sequences: Sequence[Sequence[int]],
        layers: Sequence[int],
        *,
        ledger: Ledger | None = None,
        shard_bytes: int = _SHARD_BYTES,
    ) -> Features:
        """The states of `sequences` (token ids) at `layers`. Missing states are computed and stored.

        Raises:
            FrugalignError: more states than the store may hold, or a disk that cannot be written.
        """
        width: int = causal_lm(model).config.get_text_config().hidden_size
        row_bytes = len(layers) * width * 4
        needed = row_bytes * len(sequences)
        if needed > self.max_bytes:
            raise FrugalignError(
                f"The states of {len(sequences):,} texts take {needed / 2**30:.1f} GiB, and the store may hold "
                f"{self.max_bytes / 2**30:.1f}: choose fewer layers, or raise its bound."
            )
        mean_length = sum(map(len, sequences)) / max(1, len(sequences))
        per_shard = max(1, min(shard_bytes // row_bytes, int(_SHARD_TOKENS / max(1.0, mean_length))))
        place = self.folder / key_of(model, tokenizer, sequences, layers, per_shard)
        self._make_room(place, needed)
        with writing(place):
            place.mkdir(parents=True, exist_ok=True)
            with FileLock(place / LOCK_FILE):  # another command may be computing the same
                delete_leftovers(place)
                reading = Reading(place)
                shards = self._shards(place, model, sequences, layers, per_shard, ledger)
                write_atomic(place / _USED, "")
        return Features(shards, per_shard, (len(sequences), len(layers), width), reading)

    @staticmethod
    def _shards(
        place: Path,
        model: PreTrainedModel,
        sequences: Sequence[Sequence[int]],
        layers: Sequence[int],
        per_shard: int,
        ledger: Ledger | None,
    ) -> list[Path]:
        """The shards of a key. Those that are missing or damaged are computed."""
        starts = range(0, len(sequences), per_shard)
        shards = [place / f"shard-{start // per_shard:05d}.safetensors" for start in starts]
        width: int = causal_lm(model).config.get_text_config().hidden_size
        shapes = [(min(per_shard, len(sequences) - start), len(layers), width) for start in starts]
        missing = [
            (start, shard)
            for start, shard, shape in zip(starts, shards, shapes, strict=True)
            if not _is_whole(shard, shape)
        ]
        texts = [sequences[start : start + per_shard] for start, _ in missing]
        tokens = sum(len(text) for part in texts for text in part)
        n_missing = sum(map(len, texts))
        others = "" if n_missing == len(sequences) else f" of {len(sequences):,}, the others are stored"
        say_size(0, tokens, f"the hidden states of {pluralize(n_missing, 'answer')}{others}")
        with work("hidden states", tokens, FED):
            for (_, shard), part in zip(missing, texts, strict=True):
                states = endpoint_states(model, part, layers, ledger=ledger)
                write_atomic(shard, save({"states": states}, {"hash": _hash(shard, states)}))
        return shards

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


def key_of(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    sequences: Sequence[Sequence[int]],
    layers: Sequence[int],
    per_shard: int,
) -> str:
    """A hash of everything that the states depend on. The token ids reflect the chat template."""
    digest = hashlib.sha256()
    base = fingerprint(model, tokenizer)
    trained = [parameter for name, parameter in model.named_parameters() if "lora_" in name]
    for part in (json.dumps(base.identity, sort_keys=True), model.dtype, list(layers), per_shard):
        digest.update(f"{part}\n".encode())
    for parameter in trained:  # the whole adapter, since it may have changed only slightly
        digest.update(parameter.detach().float().cpu().numpy().tobytes())
    for ids in sequences:
        digest.update(torch.tensor(list(ids), dtype=torch.int64).numpy().tobytes() + b"\n")
    return digest.hexdigest()[:24]


def _is_whole(shard: Path, shape: tuple[int, int, int]) -> bool:
    """Whether a shard is there and holds what was stored: float32 states of this shape, with their hash."""
    if not shard.is_file():
        return False
    try:
        check_safetensors(shard)
        with safe_open(shard, framework="pt") as file:
            stored, names = (file.metadata() or {}).get("hash"), list(file.keys())
            states = file.get_tensor("states") if names == ["states"] else torch.empty(0)
    except (FrugalignError, SafetensorError, OSError, RuntimeError):  # damaged: computed again
        return False
    is_expected = states.dtype == torch.float32 and tuple(states.shape) == shape
    return is_expected and stored == _hash(shard, states)


def _hash(shard: Path, states: Tensor) -> str:
    """A hash of the states, and of the place of the shard in its key."""
    digest = hashlib.blake2b(f"{shard.parent.name}/{shard.name}".encode(), digest_size=16)
    digest.update(states.contiguous().numpy().data)
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
