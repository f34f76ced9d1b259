"""Stored data as examples: the answers with their token ids, and which of them belong to an example."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from datasets import Dataset

from frugalign.base.errors import FrugalignError
from frugalign.data.stored_lists import InTurn, Twice, lists_of
from frugalign.data.templating import Rendering
from frugalign.data.weights import weights_in
from frugalign.engines.encode import encode_for_model, tokenize_pairs
from frugalign.engines.loading import LoadedModel
from frugalign.methods.answer_features import Answers
from frugalign.methods.signals import Signal


@dataclass(frozen=True)
class Examples:
    """Answers, and what is learned from them.

    A pair's better answer has the row `2i`, its worse one `2i + 1`. Otherwise an example is one answer. `weights`: one per example.
    `confidence`: of each pair's label, NaN where it is not given.
    """

    signal: Signal
    answers: Answers
    weights: Sequence[float]
    confidence: Sequence[float] | None = None

    def __len__(self) -> int:
        return len(self.weights)

    def rows(self, examples: Sequence[int]) -> list[int]:
        """The rows of these examples' answers: all better ones first, then all worse ones."""
        if self.signal != "pairs":
            return list(examples)
        return [2 * example for example in examples] + [2 * example + 1 for example in examples]


def examples_of(signal: Signal, data: Dataset, base: LoadedModel, args: Any) -> Examples:
    """Encode the rows of `data` for this base.

    Raises:
        FrugalignError: a row without a usable answer, weight or confidence, naming it.
    """
    rendering = Rendering.of(args)
    weights = weights_in(data, "weight") or array("d", [1.0]) * len(data)
    if signal == "pairs":
        pairs = tokenize_pairs(data, base.model, base.tokenizer, max_length=args.max_length, rendering=rendering)
        masks = InTurn(pairs["chosen_mask"], pairs["rejected_mask"]) if "chosen_mask" in pairs else None
        answers = Answers(Twice(pairs["prompt_ids"]), InTurn(pairs["chosen_ids"], pairs["rejected_ids"]), masks)
        return Examples(signal, answers, weights, weights_in(data, "confidence"))
    if "completion" not in data.column_names:
        raise FrugalignError("This data holds prompts alone: a teacher is imitated on answers, in a column completion.")
    ids = lists_of(data, "completion_ids") if "completion_ids" in data.column_names else None
    encoded = encode_for_model(
        base.model,
        base.tokenizer,
        data["prompt"],
        data["completion"],
        completion_ids=ids,
        max_length=args.max_length,
        rendering=rendering,
    )
    other_masks = encoded.completion_masks if encoded.has_other_turns else None
    return Examples(signal, Answers(encoded.prompt_ids, encoded.completion_ids, other_masks), weights)
