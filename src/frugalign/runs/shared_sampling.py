"""Sample groups of responses on all processes. A resumed run keeps what each process had finished."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from frugalign.base.ledger import Ledger
from frugalign.data.groups import Groups
from frugalign.data.templating import Rendering
from frugalign.decoding.chooser import Chooser
from frugalign.decoding.loop import SamplingParams
from frugalign.decoding.sample_groups import GroupOptions, sample_groups
from frugalign.engines.sharding import is_tensor_parallel
from frugalign.engines.transformers import TransformersEngine
from frugalign.runs.folder import saving
from frugalign.runs.processes import add_all_counts, gather_rows, local_rows, this_process


def local_partial(stem: Path) -> Path:
    """The file for this process's partial work: `stem` with the process's number."""
    return stem.with_name(f"{stem.name}-{this_process().process_index}.partial")


@dataclass(frozen=True)
class GroupRequest:
    """Which responses to sample.

    Args:
        prompts: strings or messages.
        size: responses per prompt.
        epoch: selects the noise, as in `sample_groups`.
        stem: path of the files of partial work, before the process's number.
        numbers: the prompts' numbers, for their noise. Default: their positions.
        share_prefix: feed the tokens that all prompts share only once.
        guide, guide_id: what chooses the tokens, and what identifies it; default: the model itself.
    """

    prompts: Sequence[Any]
    size: int
    epoch: int
    stem: Path
    numbers: Sequence[int] | None = None
    share_prefix: bool = False
    guide: Chooser | None = None
    guide_id: str = ""


def sample_on_all_processes(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, request: GroupRequest, options: Any, ledger: Ledger
) -> Groups:
    """Sample the requested groups, split over processes. Every process returns all of them.

    Args:
        options: a method's options, which give length, temperature, seed, batch size and rendering.
        ledger: counts what all processes generated.
    """
    prompts = request.prompts
    numbers = range(len(prompts)) if request.numbers is None else request.numbers
    mine, partial, counted = local_rows(len(prompts)), local_partial(request.stem), Ledger()
    with ledger.phase("rollout"), saving(partial):
        found = sample_groups(
            TransformersEngine(model, tokenizer),
            tokenizer,
            [prompts[place] for place in mine],
            request.size,
            SamplingParams(options.max_new_tokens, options.temperature),
            GroupOptions(
                numbers=[numbers[place] for place in mine],
                seed=options.seed,
                epoch=request.epoch,
                batch_size=options.sampling_batch_size,
                rendering=Rendering.of(options),
                share_prefix=request.share_prefix,
                guide=request.guide,
                guide_id=request.guide_id,
                # Processes that hold a model together would resume at different rows.
                partial=None if is_tensor_parallel() else partial,
            ),
            ledger=counted,
        )
    add_all_counts(ledger, counted)
    ids = found.completion_ids or []
    every = gather_rows([(place, found.completions[number], ids[number]) for number, place in enumerate(mine)])
    return Groups(list(prompts), [texts for _, texts, _ in every], [each for _, _, each in every])
