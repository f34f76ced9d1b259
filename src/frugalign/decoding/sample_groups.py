"""Several samples of every prompt, in chunks that outlive a kill: all noise is keyed, so a run that goes on ends as one that never stopped."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from frugalign.base.ledger import Ledger
from frugalign.base.partial_files import PartialWork
from frugalign.data.groups import Groups
from frugalign.data.templating import encode_prompts
from frugalign.decoding.loop import SamplingParams, common_prefix, generate
from frugalign.decoding.noise import row_keys
from frugalign.engines.loading import context_length

_CHUNK = 4
"""Batches of responses between two lines on the disk."""


def sample_groups(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Any],
    size: int,
    params: SamplingParams,
    *,
    numbers: Sequence[int] | None = None,
    seed: int = 0,
    epoch: int = 0,
    batch_size: int = 64,
    prompt_format: str = "auto",
    share_prefix: bool = False,
    partial: Path | None = None,
    ledger: Ledger | None = None,
) -> Groups:
    """`size` responses to every prompt.

    Args:
        numbers: the prompts' numbers in their data set, which the noise depends on; default 0, 1, ….
        epoch: another one gives other samples.
        share_prefix: feed what all prompts begin with once per chunk, not once per response.
        partial: a file that keeps what is finished; one that an interrupted call with the same arguments and model left is gone on
            with, and it is deleted at the end by whoever has saved the groups elsewhere.

    Raises:
        FrugalignError: an empty prompt, or one that leaves no room for its response in the model's context.
    """
    numbers = list(range(len(prompts))) if numbers is None else list(numbers)
    prompt_ids = encode_prompts(
        prompts,
        tokenizer,
        max_context=context_length(model),
        max_new_tokens=params.max_new_tokens,
        prompt_format=prompt_format,
    ).ids
    shared = common_prefix(prompt_ids) if share_prefix else 0
    asked = () if partial is None else (_weights(model), prompt_ids, numbers, size, params, seed, epoch)
    finished = PartialWork(partial, *asked)
    per_chunk = max(1, _CHUNK * batch_size // size)
    for start in range(len(finished.rows), len(prompts), per_chunk):
        rows = range(start, min(start + per_chunk, len(prompts)))
        generation = generate(
            model,
            tokenizer,
            [prompt_ids[row] for row in rows for _ in range(size)],
            params,
            keys=row_keys(
                seed, epoch, [numbers[row] for row in rows for _ in range(size)], list(range(size)) * len(rows)
            ),
            batch_size=batch_size,
            shared_prefix=shared,
            ledger=ledger,
        )
        texts = tokenizer.batch_decode(generation.completion_ids, skip_special_tokens=True)
        parts = [slice(place * size, (place + 1) * size) for place in range(len(rows))]
        finished.add([texts[part], generation.completion_ids[part]] for part in parts)
    return Groups(list(prompts), [texts for texts, _ in finished.rows], [ids for _, ids in finished.rows])


def _weights(model: PreTrainedModel) -> str:
    """Tells one policy of a training run from the next, by two numbers per tensor."""
    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        values = parameter.detach().double()
        digest.update(f"{name} {float(values.sum())!r} {float(values.abs().sum())!r}\n".encode())
    return digest.hexdigest()
