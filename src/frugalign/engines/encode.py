"""Encode prompts and answers for one model, with its tokenizer, end token and context length."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from frugalign.data.encode import EncodedCompletions, encode_completions
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
    prompt_format: str = "auto",
) -> EncodedCompletions:
    """`encode_completions` with this model's end token. Without `max_length`, the model's context is the limit.

    Fitting, scoring and alignment all use it.
    """
    return encode_completions(
        prompts,
        completions,
        tokenizer,
        end_id=next(iter(end_token_ids(model, tokenizer)), None),
        completion_ids=completion_ids,
        max_length=max_length or context_length(model),
        prompt_format=prompt_format,
    )


def tokenize_pairs(
    pairs: Dataset, model: Any, tokenizer: Any, *, max_length: int | None = None, prompt_format: str = "auto"
) -> dict[str, Any]:
    """`prompt_ids`, `chosen_ids` and `rejected_ids`, encoded as `encode_completions` does. A sampled answer keeps the
    ids in `chosen_completion_ids` and `rejected_completion_ids`."""
    sides = [
        encode_for_model(
            model,
            tokenizer,
            pairs["prompt"],
            pairs[side],
            completion_ids=pairs[ids] if (ids := f"{side}_completion_ids") in pairs.column_names else None,
            max_length=max_length,
            prompt_format=prompt_format,
        )
        for side in ("chosen", "rejected")
    ]
    return {
        # Take the shorter prompt for both sides: one may have been cut to fit its answer.
        "prompt_ids": [min(both, key=len) for both in zip(*(side.prompt_ids for side in sides), strict=True)],
        "chosen_ids": list(sides[0].completion_ids),
        "rejected_ids": list(sides[1].completion_ids),
    }
