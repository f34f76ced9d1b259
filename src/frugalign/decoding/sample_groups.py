"""Several samples of every prompt, in chunks that survive a kill. Noise is keyed, so a resumed run equals an
uninterrupted one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from frugalign.base import progress
from frugalign.base.ledger import Ledger
from frugalign.base.partial_files import PartialWork
from frugalign.data.groups import Groups
from frugalign.data.templating import AUTO, Rendering, encode_prompts
from frugalign.decoding.chooser import Chooser
from frugalign.decoding.loop import LoopOptions, SamplingParams, common_prefix, generate
from frugalign.decoding.noise import row_keys
from frugalign.engines.engine import Engine

_CHUNK = 4
"""Batches of responses between two writes to disk."""


@dataclass(frozen=True)
class GroupOptions:
    """The noise of the groups, and how they are drawn.

    `numbers`: the prompts' numbers in their data set, on which the noise depends. Default: 0, 1, …. `epoch`: another
    epoch gives other samples. `share_prefix`: feed the prompts' common prefix once per chunk, not once per response.
    `guide`: what chooses the tokens, and
    `guide_id`: what identifies it; default: the engine's model. `partial`: a file of finished groups. A call with the same arguments and model resumes from it. The caller deletes
    it after saving the groups elsewhere.
    """

    numbers: Sequence[int] | None = None
    seed: int = 0
    epoch: int = 0
    batch_size: int = 64
    rendering: Rendering = AUTO
    share_prefix: bool = False
    guide: Chooser | None = None
    guide_id: str = ""
    partial: Path | None = None


def sample_groups(
    engine: Engine,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Any],
    size: int,
    params: SamplingParams,
    options: GroupOptions | None = None,
    *,
    ledger: Ledger | None = None,
) -> Groups:
    """`size` responses to every prompt.

    Raises:
        FrugalignError: a prompt is empty, or leaves no room for its response in the model's context.
    """
    options = options or GroupOptions()
    numbers = list(range(len(prompts)) if options.numbers is None else options.numbers)
    prompt_ids = encode_prompts(
        prompts,
        tokenizer,
        max_context=engine.context_length,
        max_new_tokens=params.max_new_tokens,
        rendering=options.rendering,
    ).ids
    shared = common_prefix(prompt_ids) if options.share_prefix else 0
    seed, epoch, batch_size, partial = options.seed, options.epoch, options.batch_size, options.partial
    work = (
        ()
        if partial is None
        else (engine.weights_id() + options.guide_id, prompt_ids, numbers, size, params, seed, epoch)
    )
    finished = PartialWork(partial, *work)
    ledger = ledger or Ledger()
    ledger.add(finished.spent)
    per_chunk = max(1, _CHUNK * batch_size // size)
    left = len(prompts) - len(finished.rows)
    with progress.work("sampling", left * size * params.max_new_tokens, progress.SAMPLED):
        for start in range(len(finished.rows), len(prompts), per_chunk):
            rows, spent = range(start, min(start + per_chunk, len(prompts))), Ledger()
            generation = generate(
                engine,
                [prompt_ids[row] for row in rows for _ in range(size)],
                params,
                keys=row_keys(
                    seed, epoch, [numbers[row] for row in rows for _ in range(size)], list(range(size)) * len(rows)
                ),
                guide=options.guide,
                options=LoopOptions(batch_size=batch_size, shared_prefix=shared),
                ledger=spent,
            )
            ledger.add(spent)
            texts = tokenizer.batch_decode(generation.completion_ids, skip_special_tokens=True)
            parts = [slice(place * size, (place + 1) * size) for place in range(len(rows))]
            finished.add(([texts[part], generation.completion_ids[part]] for part in parts), spent)
    return Groups(list(prompts), [texts for texts, _ in finished.rows], [ids for _, ids in finished.rows])
