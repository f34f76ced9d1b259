"""Log-probabilities under the model before training, computed once and stored with the pairs.

They save all later passes through the reference. If every weight is trained, they also save a second model in memory.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from typing import Any

import torch
from datasets import Dataset

from frugalign.base.ledger import Ledger
from frugalign.base.progress import SCORED, advance, work
from frugalign.methods.rerank.collator import REFERENCE
from frugalign.runs.processes import add_all_counts, gather_rows, local_rows


def store_references(trainer: Any) -> None:
    """Add the columns `REFERENCE` to the pairs of a `PreferenceTrainer`, if its settings say so or if that saves memory or passes.
    A proxy's log-ratio to its base takes no pass.

    Training pairs use the batches of the first epoch, so that its numbers are bit-equal with and without precomputation.
    """
    args, wanted = trainer.args, trainer.args.precompute_ref_log_probs
    if wanted is False or trainer.pairs_vary or not trainer.carrier.passes:
        return
    wanted = wanted or trainer.carrier.copies_start
    counted = Ledger()
    with trainer.ledger.phase("read"):
        pairs = trainer.train_dataset
        if REFERENCE[0] not in pairs.column_names:
            batches, n_epochs = first_epoch(trainer)
            if wanted or n_epochs > 1:
                trainer.train_dataset = with_reference(trainer, pairs, batches, counted, complete=n_epochs >= 1)
        held_out = trainer.eval_dataset
        if (
            held_out is not None
            and (wanted or args.eval_strategy != "no")
            and REFERENCE[0] not in held_out.column_names
        ):
            batches = in_batches(local_rows(len(held_out)), args.per_device_eval_batch_size)
            trainer.eval_dataset = with_reference(trainer, held_out, batches, counted)
    add_all_counts(trainer.ledger, counted)


def first_epoch(trainer: Any) -> tuple[list[list[int]], float]:
    """The rows of this process's batches in the first epoch, as far as the run goes, and the run's number of epochs."""
    args = trainer.args
    loader = trainer.get_train_dataloader()
    if not args.accelerator_config.use_seedable_sampler:  # another order each time
        return in_batches(local_rows(len(trainer.train_dataset)), args.per_device_train_batch_size), float("inf")
    batches = [list(rows) for rows in loader.batch_sampler]
    if args.max_steps <= 0:
        return batches, float(args.num_train_epochs)
    visited = args.max_steps * args.gradient_accumulation_steps
    return list(islice(batches, visited)), visited / max(1, len(batches))


def in_batches(rows: list[int], size: int) -> list[list[int]]:
    """The rows in order, `size` at a time."""
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def with_reference(
    trainer: Any, pairs: Dataset, batches: Iterable[list[int]], counted: Ledger, *, complete: bool = False
) -> Dataset:
    """The pairs with the columns `REFERENCE`. Rows in no batch get NaN; with `complete`, they are computed as well."""
    table = torch.full((len(pairs), 2), float("nan"), dtype=torch.float64)
    _fill(trainer, pairs, batches, table, counted)
    if complete:
        missing = table[:, 0].isnan().nonzero()[:, 0].tolist()
        mine = [missing[place] for place in local_rows(len(missing))]
        _fill(trainer, pairs, in_batches(mine, trainer.args.per_device_train_batch_size), table, counted)
    for column, name in enumerate(REFERENCE):
        pairs = pairs.add_column(name, table[:, column].tolist())
    return pairs


def _fill(trainer: Any, pairs: Dataset, batches: Iterable[list[int]], table: torch.Tensor, counted: Ledger) -> None:
    """Write the log-probabilities of all processes' batches into the table."""
    found: list[tuple[int, float, float]] = []
    batches = list(batches)
    with work("reference", sum(map(len, batches)), SCORED):
        for rows in batches:
            batch = trainer._prepare_inputs(trainer.data_collator([pairs[row] for row in rows]))
            chosen, rejected = trainer.score_reference(batch).chunk(2)
            found += zip(rows, chosen.tolist(), rejected.tolist(), strict=True)
            counted.count(lm_forward_tokens=int(batch["attention_mask"].sum()))
            advance(SCORED, len(rows))
    for row, *values in gather_rows(found):
        table[row] = torch.tensor(values, dtype=torch.float64)
