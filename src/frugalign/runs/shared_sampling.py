"""Groups of responses sampled by all processes together; a resumed run keeps what each of them had finished."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from accelerate import PartialState
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from frugalign.base.ledger import Ledger
from frugalign.data.groups import Groups
from frugalign.decoding.loop import SamplingParams
from frugalign.decoding.sample_groups import GroupOptions, sample_groups
from frugalign.engines.transformers import TransformersEngine
from frugalign.runs.folder import saving
from frugalign.runs.processes import count_all, my_rows, shared


def my_partial(stem: Path) -> Path:
    """This process's file of partial work: `stem` with the process's number."""
    return stem.with_name(f"{stem.name}-{PartialState().process_index}.partial")


def sample_together(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Any],
    size: int,
    options: Any,
    *,
    epoch: int,
    stem: Path,
    ledger: Ledger,
    numbers: Sequence[int] | None = None,
    share_prefix: bool = False,
) -> Groups:
    """`size` responses to every prompt from the model as it is, by a method's `options` of sampling; see `sample_groups`."""
    numbers = range(len(prompts)) if numbers is None else numbers
    mine, partial, counted = my_rows(len(prompts)), my_partial(stem), Ledger()
    with ledger.phase("rollout"), saving(partial):
        found = sample_groups(
            TransformersEngine(model, tokenizer),
            tokenizer,
            [prompts[place] for place in mine],
            size,
            SamplingParams(options.max_new_tokens, options.temperature),
            GroupOptions(
                numbers=[numbers[place] for place in mine],
                seed=options.seed,
                epoch=epoch,
                batch_size=options.sampling_batch_size,
                prompt_format=options.prompt_format,
                share_prefix=share_prefix,
                partial=partial,
            ),
            ledger=counted,
        )
    count_all(ledger, counted)
    ids = found.completion_ids or []
    every = shared([(place, found.completions[number], ids[number]) for number, place in enumerate(mine)])
    return Groups(list(prompts), [texts for _, texts, _ in every], [each for _, _, each in every])
