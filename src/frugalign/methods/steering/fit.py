"""Fit a steering vector: one pass of the frozen model over preference pairs, for all layers at once.

A layer and a strength are chosen afterwards, so a sweep reads the pairs once: the sums of every few pairs are stored under a hash of what
they depend on.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from frugalign.base.cards import CardTables, model_card
from frugalign.base.errors import FrugalignError
from frugalign.base.files import CARD_FILE, write_atomic
from frugalign.base.ledger import Ledger
from frugalign.base.progress import FED, work
from frugalign.base.wording import pluralize
from frugalign.data.splits import training_data_record
from frugalign.data.templating import AUTO, Rendering
from frugalign.engines.encode import tokenize_pairs
from frugalign.engines.fingerprints import BaseFingerprint, fingerprint
from frugalign.engines.loading import LoadedModel
from frugalign.engines.states import mean_states, n_layers, steered_block
from frugalign.policies.steering import SteeringConfig, SteeringModel
from frugalign.runs.folder import open_run_folder, publish
from frugalign.runs.layout import COSTS_FILE
from frugalign.runs.progress import say_size
from frugalign.runs.shard_store import ShardFile, ShardStore

if TYPE_CHECKING:
    from datasets import Dataset

_FORM = "mean difference 1"
_PAIRS_A_SHARD = 16
"""A kill loses no more than one shard."""


@dataclass(frozen=True)
class _Side:
    """The texts of all good or all bad answers, and 1 for the tokens whose states count."""

    ids: list[list[int]]
    counts: list[list[int]]

    @classmethod
    def of(cls, encoded: dict[str, Any], side: str) -> _Side:
        prompts, answers = encoded["prompt_ids"], encoded[f"{side}_ids"]
        masks = encoded.get(f"{side}_mask") or [[1] * len(answer) for answer in answers]
        rows = list(zip(prompts, answers, masks, strict=True))
        return cls([[*a, *b] for a, b, _ in rows], [[*[0] * len(a), *mask] for a, _, mask in rows])


def mean_differences(
    base: LoadedModel,
    pairs: Dataset,
    store: ShardStore,
    *,
    rendering: Rendering = AUTO,
    ledger: Ledger | None = None,
) -> Tensor:
    """The mean state over the chosen answer's tokens minus that over the rejected one's, averaged over pairs: `[L − 1, D]`, layer 1 first.

    The ledger counts what the pass feeds, also where its result was stored before.

    Raises:
        FrugalignError: no pairs, an answer without tokens, or a disk that cannot be written.
    """
    if not len(pairs):
        raise FrugalignError("A steering vector needs preference pairs, and there are none.")
    encoded = tokenize_pairs(pairs, base.model, base.tokenizer, rendering=rendering)
    sides = [_Side.of(encoded, side) for side in ("chosen", "rejected")]
    layers = list(range(1, n_layers(base.model)))
    parts = [slice(start, start + _PAIRS_A_SHARD) for start in range(0, len(pairs), _PAIRS_A_SHARD)]

    def compute(missing: list[int]) -> Iterator[dict[str, Tensor]]:
        tokens = sum(len(ids) for each in missing for side in sides for ids in side.ids[parts[each]])
        if missing:
            say_size(0, tokens, f"the hidden states of {pluralize(len(pairs), 'pair')}")
        with work("hidden states", tokens, FED):
            for each in missing:
                spent, part = Ledger(), parts[each]
                chosen, rejected = (
                    mean_states(base.model, side.ids[part], side.counts[part], layers, ledger=spent) for side in sides
                )
                fed = torch.tensor([spent.lm_forward_tokens])
                yield {"difference": (chosen - rejected).sum(0), "fed": fed}

    key = _key(fingerprint(base.model, base.tokenizer), str(base.model.dtype), sides)
    needed = len(parts) * len(layers) * base.model.config.get_text_config().hidden_size * 4
    shards = store.shards(key, len(parts), compute, needed=needed)
    files = [ShardFile.of(file) for file in shards.files]
    if ledger is not None:
        ledger.count(lm_forward_tokens=int(sum(file.rows("fed").sum() for file in files)))
    return torch.stack([file.rows("difference") for file in files]).sum(0) / len(pairs)


def save_steering(
    base: LoadedModel, differences: Tensor, folder: Path, ledger: Ledger, *, layer: int, strength: float, pairs: Dataset
) -> SteeringModel:
    """Write the vector of one layer with its card and costs into the run folder.

    Args:
        differences: what `mean_differences` found.
        layer: 1…L−1.
        strength: the multiple of the difference that is added.

    Raises:
        FrugalignError: the model has no such layer, or a file cannot be written.
    """
    steered_block(base.model, layer)
    vector = differences[layer - 1]
    config = SteeringConfig(width=len(vector), layer=layer, strength=float(strength))
    config.base = fingerprint(base.model, base.tokenizer, name=base.name, revision=base.revision).to_dict()
    config.trained_on = training_data_record(None, pairs, held_out_fraction=0.0)
    network = SteeringModel(config)
    network.vector.data.copy_(vector)
    card = model_card(
        title=f"Steering vector for {base.name or 'a causal language model'}",
        description=f"The difference of mean hidden states between good and bad answers at layer {layer}, added {strength:g} times.",
        base_model=base.name,
        tables=CardTables(costs=ledger.table()),
        usage=f"frugalign chat --model_name_or_path {base.name} --steering {folder}",
    )
    write_atomic(open_run_folder(folder) / CARD_FILE, card)
    ledger.save(folder / COSTS_FILE)
    publish(folder, network.save_pretrained)
    return network


def _key(base: BaseFingerprint, dtype: str, sides: Sequence[_Side]) -> str:
    """A hash of everything that the differences depend on. The token ids reflect the chat template."""
    about = [base.identity, dtype, _FORM, _PAIRS_A_SHARD]
    digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode())
    for side in sides:
        for part in (side.ids, side.counts):
            for row in part:
                digest.update(torch.tensor(row, dtype=torch.int64).numpy().tobytes() + b"\n")
    return digest.hexdigest()[:24]
