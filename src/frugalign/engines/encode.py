"""Encode prompts and answers for one model, with its tokenizer, end tokens and context length."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from frugalign.data.encode import EncodedCompletions, encode_completions
from frugalign.data.templating import AUTO, Rendering
from frugalign.engines.transformers import context_length, end_token_ids

if TYPE_CHECKING:
    from datasets import Dataset


def encode_for_model(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Any],
    completions: Sequence[Any],
    *,
    completion_ids: Sequence[Sequence[int]] | None = None,
    max_length: int | None = None,
    rendering: Rendering = AUTO,
) -> EncodedCompletions:
    """`encode_completions` with this model's end tokens. Without `max_length`, the model's context is the limit.

    Fitting, scoring and alignment all use it.
    """
    return _whole(model, tokenizer, prompts, completions, completion_ids, rendering).cut(
        max_length or context_length(model)
    )


def _whole(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Any],
    completions: Sequence[Any],
    completion_ids: Sequence[Sequence[int]] | None,
    rendering: Rendering,
) -> EncodedCompletions:
    return encode_completions(
        prompts,
        completions,
        tokenizer,
        end_ids=end_token_ids(model, tokenizer),
        completion_ids=completion_ids,
        rendering=rendering,
    )


def tokenize_pairs(
    pairs: Dataset, model: Any, tokenizer: Any, *, max_length: int | None = None, rendering: Rendering = AUTO
) -> dict[str, Any]:
    """`prompt_ids`, `chosen_ids` and `rejected_ids`, encoded as `encode_for_model` does. A sampled answer keeps the
    ids in `chosen_completion_ids` and `rejected_completion_ids`. If an answer holds turns of others, `chosen_mask` and
    `rejected_mask` are 1 for the assistant's tokens."""
    columns = [
        pairs[ids] if (ids := f"{side}_completion_ids") in pairs.column_names else None
        for side in ("chosen", "rejected")
    ]
    sides = [
        _whole(model, tokenizer, pairs["prompt"], pairs[side], given, rendering)
        for side, given in zip(("chosen", "rejected"), columns, strict=True)
    ]
    # Where one prompt is shorter, the rest of the other one belongs to its answer.
    shared = [min(map(len, both)) for both in zip(*(side.prompt_ids for side in sides), strict=True)]
    chosen, rejected = (side.divided(shared).cut(max_length or context_length(model)) for side in sides)
    mixed = bool(chosen.others or rejected.others)
    return {
        # The shorter prompt once more: one may have been cut to fit its answer.
        "prompt_ids": [min(both, key=len) for both in zip(chosen.prompt_ids, rejected.prompt_ids, strict=True)],
        "chosen_ids": chosen.completion_ids,
        "rejected_ids": rejected.completion_ids,
        **({"chosen_mask": chosen.completion_masks, "rejected_mask": rejected.completion_masks} if mixed else {}),
    }
