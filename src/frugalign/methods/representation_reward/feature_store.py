"""The feature store: a model's endpoint states on a list of texts, computed once and kept on disk in shards."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from frugalign.base.errors import FrugalignError
from frugalign.base.ledger import Ledger
from frugalign.base.progress import FED, work
from frugalign.base.wording import pluralize
from frugalign.engines.fingerprints import fingerprint
from frugalign.engines.states import endpoint_states
from frugalign.engines.transformers import causal_lm
from frugalign.runs.lock import Reading
from frugalign.runs.progress import say_size
from frugalign.runs.shard_store import ShardStore

_SHARD_BYTES = 64 * 2**20
_SHARD_TOKENS = 8192
"""Tokens of a shard, on average. A kill loses no more than one shard."""
_IN_MEMORY = 512 * 2**20


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
        self._store = ShardStore(folder, max_gib=max_gib)

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
        needed, most = row_bytes * len(sequences), self._store.max_bytes
        if needed > most:
            raise FrugalignError(
                f"The states of {len(sequences):,} texts take {needed / 2**30:.1f} GiB, and the store may hold "
                f"{most / 2**30:.1f}: choose fewer layers, or raise its bound."
            )
        mean_length = sum(map(len, sequences)) / max(1, len(sequences))
        per_shard = max(1, min(shard_bytes // row_bytes, int(_SHARD_TOKENS / max(1.0, mean_length))))
        parts = [sequences[start : start + per_shard] for start in range(0, len(sequences), per_shard)]

        def compute(missing: list[int]) -> Iterator[dict[str, Tensor]]:
            texts = [parts[each] for each in missing]
            tokens, n_missing = sum(len(text) for part in texts for text in part), sum(map(len, texts))
            others = "" if n_missing == len(sequences) else f" of {len(sequences):,}, the others are stored"
            say_size(0, tokens, f"the hidden states of {pluralize(n_missing, 'answer')}{others}")
            with work("hidden states", tokens, FED):
                for part in texts:
                    yield {"states": endpoint_states(model, part, layers, ledger=ledger)}

        key = key_of(model, tokenizer, sequences, layers, per_shard)
        found = self._store.shards(key, len(parts), compute, needed=needed)
        return Features(found.files, per_shard, (len(sequences), len(layers), width), found.reading)


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
