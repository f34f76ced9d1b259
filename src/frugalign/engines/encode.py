"""Encode prompts and answers for one model, with its tokenizer, end tokens and context length.

Many rows are encoded a part at a time, and their token ids are on the disk.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from frugalign.base.progress import ENCODED, advance, work
from frugalign.data.encode import EncodedCompletions, encode_completions, say_cut
from frugalign.data.on_disk import ROWS, kept_table
from frugalign.data.row_parts import kept_key
from frugalign.data.stored_lists import UNCLEAR, StoredLists, StoredMasks, lists_in
from frugalign.data.templating import AUTO, Rendering
from frugalign.engines.base_settings import tokenizer_values
from frugalign.engines.transformers import context_length, end_token_ids

if TYPE_CHECKING:
    from datasets import Dataset

SIDES = ("chosen", "rejected")
_READ = ("prompt", *SIDES, *(f"{side}_completion_ids" for side in SIDES))
_IDS = pa.list_(pa.int64())


@dataclass(frozen=True)
class _Encoder:
    """Encodes rows for a model. A row has at most `limit` tokens, if there is a limit."""

    model: Any
    tokenizer: PreTrainedTokenizerBase
    limit: int | None
    rendering: Rendering

    def whole(
        self, prompts: Sequence[Any], completions: Sequence[Any], ids: Sequence[Sequence[int]] | None, first: int
    ) -> EncodedCompletions:
        """Rows before they are cut. `ids`: those of the completions, where a model generated them."""
        return encode_completions(
            prompts,
            completions,
            self.tokenizer,
            end_ids=end_token_ids(self.model, self.tokenizer),
            completion_ids=ids,
            rendering=self.rendering,
            first=first,
        )

    def pairs(self, rows: Mapping[str, Sequence[Any]], first: int = 0) -> tuple[EncodedCompletions, EncodedCompletions]:
        """Both sides of pairs, cut. They share their prompts, except where one was cut to fit its answer."""
        sides = [self.whole(rows["prompt"], rows[side], rows.get(f"{side}_completion_ids"), first) for side in SIDES]
        # Where one prompt is shorter, the rest of the other one belongs to its answer.
        shared = [min(map(len, both)) for both in zip(*(side.prompt_ids for side in sides), strict=True)]
        chosen, rejected = (side.divided(shared).cut(self.limit) for side in sides)
        return chosen, rejected

    def name(self) -> list[Any]:
        """What the ids of a text depend on."""
        rendering = self.rendering
        about = [tokenizer_values(self.tokenizer), list(end_token_ids(self.model, self.tokenizer)), self.limit]
        return [*about, rendering.prompt_format, dict(rendering.chat_template_kwargs)]


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
    encoder = _Encoder(model, tokenizer, max_length or context_length(model), rendering)
    if len(prompts) <= ROWS:
        found = encoder.whole(prompts[:], completions[:], completion_ids, 0).cut(encoder.limit)
    else:
        table = kept_table(None, lambda: _tables(encoder, prompts, completions, completion_ids))
        found = _stored(table)
    say_cut(found.n_cut, len(prompts), encoder.limit)
    return found


def _tables(
    encoder: _Encoder, prompts: Sequence[Any], completions: Sequence[Any], ids: Sequence[Sequence[int]] | None
) -> Iterator[pa.Table]:
    with work("encoding the answers", len(prompts), ENCODED):
        for start in range(0, len(prompts), ROWS):
            part = slice(start, start + ROWS)
            given = None if ids is None else ids[part]
            yield _table(encoder.whole(prompts[part], completions[part], given, start).cut(encoder.limit))
            advance(ENCODED, len(prompts[part]))


def _table(encoded: EncodedCompletions) -> pa.Table:
    """Encoded rows as a table with the columns of `_stored`."""
    columns = {"prompt_ids": encoded.prompt_ids, "answer_ids": encoded.completion_ids}
    if encoded.has_other_turns:
        columns["mask"] = _masks(encoded)
    found = {name: pa.array(rows, type=_IDS) for name, rows in columns.items()}
    return pa.table(found | {"n_cut": _once(encoded.n_cut, len(encoded.prompt_ids))})


def _stored(table: pa.Table) -> EncodedCompletions:
    prompts, answers = (StoredLists(table.column(name)) for name in ("prompt_ids", "answer_ids"))
    masks = StoredMasks(StoredLists(table.column("mask")), answers) if "mask" in table.column_names else None
    return EncodedCompletions(prompts, answers, pc.sum(table.column("n_cut")).as_py(), masks=masks)


def _masks(encoded: EncodedCompletions) -> list[list[int]]:
    rows = range(len(encoded.completion_ids))
    return [UNCLEAR if encoded.others.get(row, ()) is None else encoded.mask(row) for row in rows]


def _once(number: int, rows: int) -> pa.Array:
    """A column whose sum is a number."""
    return pa.array([number, *[0] * (rows - 1)], type=pa.int64())


def tokenize_pairs(
    pairs: Dataset, model: Any, tokenizer: Any, *, max_length: int | None = None, rendering: Rendering = AUTO
) -> dict[str, Any]:
    """`prompt_ids`, `chosen_ids` and `rejected_ids`, encoded as `encode_for_model` does. A sampled answer keeps the
    ids in `chosen_completion_ids` and `rejected_completion_ids`. If an answer holds turns of others, `chosen_mask` and
    `rejected_mask` are 1 for the assistant's tokens."""
    if len(pairs) > ROWS:
        table = pairs_table(pairs, model, tokenizer, max_length=max_length, rendering=rendering)
        return {name: lists_in(table, name) for name in table.column_names}
    encoder = _Encoder(model, tokenizer, max_length or context_length(model), rendering)
    sides = encoder.pairs({name: pairs[name][:] for name in pairs.column_names if name in _READ})
    for side in sides:
        say_cut(side.n_cut, len(pairs), encoder.limit)
    return _pair_columns(*sides)


def pairs_table(
    pairs: Dataset, model: Any, tokenizer: Any, *, max_length: int | None = None, rendering: Rendering = AUTO
) -> pa.Table:
    """The columns of `tokenize_pairs` for many pairs, on the disk. They stay there for the next call, if the pairs are on the disk too."""
    encoder = _Encoder(model, tokenizer, max_length or context_length(model), rendering)

    def tables() -> Iterator[pa.Table]:
        first, names = 0, [name for name in pairs.column_names if name in _READ]
        with work("encoding the pairs", len(pairs), ENCODED):
            for rows in pairs.select_columns(names).iter(ROWS):
                sides, number = encoder.pairs(rows, first), len(rows["prompt"])
                ids = {name: pa.array(each, type=_IDS) for name, each in _pair_columns(*sides).items()}
                cut = {_cut(name): _once(side.n_cut, number) for name, side in zip(SIDES, sides, strict=True)}
                yield pa.table(ids | cut)
                first += number
                advance(ENCODED, number)

    table = kept_table(kept_key(pairs, "pairs", encoder.name()), tables)
    for side in SIDES:
        say_cut(pc.sum(table.column(_cut(side))).as_py(), len(table), encoder.limit)
    return table.drop_columns([_cut(side) for side in SIDES])


def _pair_columns(chosen: EncodedCompletions, rejected: EncodedCompletions) -> dict[str, Sequence[list[int]]]:
    mixed = chosen.has_other_turns or rejected.has_other_turns
    return {
        # The shorter prompt once more: one may have been cut to fit its answer.
        "prompt_ids": [min(both, key=len) for both in zip(chosen.prompt_ids, rejected.prompt_ids, strict=True)],
        "chosen_ids": chosen.completion_ids,
        "rejected_ids": rejected.completion_ids,
        **({"chosen_mask": chosen.completion_masks, "rejected_mask": rejected.completion_masks} if mixed else {}),
    }


def _cut(side: str) -> str:
    return f"{side}_n_cut"
