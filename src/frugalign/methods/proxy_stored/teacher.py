"""The teacher whose distribution a proxy imitates: the base itself under written principles, or a larger model (context distillation)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from frugalign.base.errors import FrugalignError
from frugalign.data.templating import Rendering, encode_prompts
from frugalign.engines.loading import LoadedModel, load_model
from frugalign.engines.transformers import context_length, embedding_rows
from frugalign.methods.answer_features import Teacher
from frugalign.options.loading import model_arguments
from frugalign.policies.principles import load_principles, under_principles


def teacher_model(base: LoadedModel, args: Any) -> LoadedModel:
    """The model that teaches: `--teacher`, or the base itself.

    Raises:
        FrugalignError: another tokenizer or vocabulary than the base's.
    """
    if args.teacher is None:
        return base
    found = load_model(args.teacher, **model_arguments(args) | {"revision": None, "adapter": None})
    if found.tokenizer.get_vocab() != base.tokenizer.get_vocab():
        raise FrugalignError(
            f"The teacher {args.teacher} has another tokenizer than the model, so their tokens cannot be compared."
        )
    sizes = [embedding_rows(each.model).shape[0] for each in (found, base)]
    if sizes[0] != sizes[1]:
        raise FrugalignError(
            f"The teacher {args.teacher} has {sizes[0]:,} tokens in its head, and the model {sizes[1]:,}."
        )
    found.model.eval().requires_grad_(False)
    return found


def taught_prompts(prompts: Sequence[Any], base: LoadedModel, args: Any) -> Sequence[Any]:
    """The prompts as the teacher reads them."""
    if args.principles is None:
        return prompts
    return under_principles(load_principles(args.principles), prompts, base.tokenizer, Rendering.of(args))


def teacher_of(
    prompts: Sequence[Any], answer_ids: Sequence[Sequence[int]], model: LoadedModel, base: LoadedModel, args: Any
) -> Teacher:
    """The teacher of these answers to these prompts.

    Raises:
        FrugalignError: a prompt as the teacher reads it and its answer exceed the teacher's context.
    """
    taught = taught_prompts(prompts, base, args)
    ids = encode_prompts(taught, base.tokenizer, max_new_tokens=0, rendering=Rendering.of(args)).ids
    context = context_length(model.model)
    for row, (prompt, answer) in enumerate(zip(ids, answer_ids, strict=True)):
        if context is not None and len(prompt) + len(answer) > context:
            raise FrugalignError(
                f"Row {row + 1} has {len(prompt) + len(answer)} tokens as the teacher reads it, and its context is {context}: "
                "shorten the principles, or lower max_length."
            )
    return Teacher(model.model, model.tokenizer, ids, args.temperature)
