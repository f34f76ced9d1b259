"""From encoded pairs to a padded batch: the chosen answers first, then the rejected ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from datasets import Dataset
from datasets.fingerprint import generate_random_fingerprint
from datasets.table import InMemoryTable
from torch import Tensor

from frugalign.data.on_disk import ROWS
from frugalign.data.templating import Rendering
from frugalign.data.weights import WEIGHTS, weights_in
from frugalign.engines.encode import SIDES, pairs_table, tokenize_pairs

REFERENCE = ("ref_chosen_logps", "ref_rejected_logps")
"""Precomputed log-probabilities of both answers under the model before training, with TRL's names."""


def encode_pairs(pairs: Dataset, model: Any, tokenizer: Any, args: Any) -> Dataset:
    """What `tokenize_pairs` finds, encoded as the probes read a prompt with its answer, with a row's own γ (`confidence`) and the
    `weight` of its loss.

    Raises:
        FrugalignError: a bad confidence or weight, naming its row.
    """
    own = {name: found for name in WEIGHTS if (found := weights_in(pairs, name)) is not None}
    rendering = Rendering.of(args)
    if len(pairs) <= ROWS:
        columns = tokenize_pairs(pairs, model, tokenizer, max_length=args.max_length, rendering=rendering)
        return Dataset.from_dict(columns | {name: list(values) for name, values in own.items()})
    table = pairs_table(pairs, model, tokenizer, max_length=args.max_length, rendering=rendering)
    for name, values in own.items():
        table = table.append_column(name, pa.array(np.array(values)))
    # Without a fingerprint, `Dataset` would copy the whole table to hash it.
    return Dataset(InMemoryTable(table), fingerprint=generate_random_fingerprint())


@dataclass
class PairCollator:
    """B pairs to `input_ids`, `attention_mask`, `completion_mask` `[2B, T]`, padded on the right, and the pairs' columns `[B]`.

    The mask leaves out turns of others within an answer.
    """

    pad_token_id: int
    pad_to_multiple_of: int | None = None

    def __call__(self, pairs: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        sides = [
            (pair["prompt_ids"], pair[f"{side}_ids"], pair.get(f"{side}_mask") or [1] * len(pair[f"{side}_ids"]))
            for side in SIDES
            for pair in pairs
        ]
        width = max(len(prompt) + len(answer) for prompt, answer, _ in sides)
        multiple = self.pad_to_multiple_of or 1
        width = -(-width // multiple) * multiple
        rest = [width - len(prompt) - len(answer) for prompt, answer, _ in sides]
        rows = [(*side, pad) for side, pad in zip(sides, rest, strict=True)]
        batch: dict[str, list[Any]] = {
            "input_ids": [[*prompt, *answer, *[self.pad_token_id] * pad] for prompt, answer, _, pad in rows],
            "attention_mask": [[1] * (width - pad) + [0] * pad for *_, pad in rows],
            "completion_mask": [[0] * len(prompt) + [*mask] + [0] * pad for prompt, _, mask, pad in rows],
        }
        for name in (*WEIGHTS, *REFERENCE):
            if name in pairs[0]:
                batch[name] = [float(pair[name]) for pair in pairs]
        return {name: torch.tensor(values) for name, values in batch.items()}
