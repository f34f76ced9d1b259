"""From encoded pairs to a padded batch: the chosen answers first, then the rejected ones."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor

from frugalign.base.errors import FrugalignError
from frugalign.data.templating import Rendering
from frugalign.engines.encode import tokenize_pairs

COLUMNS = ("confidence", "weight")
"""Optional columns: a row's own γ, and the weight of its loss."""
SIDES = ("chosen", "rejected")
REFERENCE = ("ref_chosen_logps", "ref_rejected_logps")
"""Precomputed log-probabilities of both answers under the model before training, with TRL's names."""


def encode_pairs(pairs: Dataset, model: Any, tokenizer: Any, args: Any) -> Dataset:
    """What `tokenize_pairs` finds, encoded as the probes read a prompt with its answer, and our columns.

    Raises:
        FrugalignError: a confidence outside [0, 1], naming its row.
    """
    for row, gamma in enumerate(pairs["confidence"] if "confidence" in pairs.column_names else []):
        if gamma is not None and not (0 <= gamma <= 1 or math.isnan(gamma)):
            raise FrugalignError(f"Row {row + 1} has the confidence {gamma}; it lies in [0, 1].")
    columns = tokenize_pairs(pairs, model, tokenizer, max_length=args.max_length, rendering=Rendering.of(args))
    return Dataset.from_dict(columns | {name: pairs[name] for name in COLUMNS if name in pairs.column_names})


@dataclass
class PairCollator:
    """B pairs to `input_ids`, `attention_mask`, `completion_mask` `[2B, T]`, padded on the right, and the pairs' columns `[B]`.

    The mask leaves out turns of others within an answer. A missing confidence becomes NaN, and a missing weight 1.
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
        for name, missing in zip((*COLUMNS, *REFERENCE), (math.nan, 1.0, math.nan, math.nan), strict=True):
            if any(name in pair for pair in pairs):
                values = [pair.get(name) for pair in pairs]
                batch[name] = [missing if value is None else float(value) for value in values]
        return {name: torch.tensor(values) for name, values in batch.items()}
