"""Hidden states of whole texts: at the endpoint, which a probe reads, and averaged over an answer, for a steering vector.

`read_ids` says how far an answer is read: fitting, scoring and re-ranking all call it.
Texts run once, in batches of a bounded number of tokens. Only what is asked of the chosen layers is kept. A causal
model's state does not depend on what follows, so texts are padded on the right. The endpoint is each text's own last
token.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from frugalign.base.errors import FrugalignError
from frugalign.base.ledger import Ledger
from frugalign.base.progress import FED, advance
from frugalign.data.encode import EncodedCompletions
from frugalign.engines.sentences import sentence_ends
from frugalign.engines.sharding import is_fully_sharded
from frugalign.engines.transformers import causal_lm, device_of, evaluating

_TOKENS = 8192
"""Padded tokens of one batch, at most."""
_LEAST_TOKENS = 256
_SMALL = 64 * 2**20
"""Bytes that the activations of a batch may always take."""


def n_layers(model: PreTrainedModel) -> int:
    """The number of layers `L`. Hugging Face's `hidden_states` has `L + 1` entries: the embeddings first, the state
    after the final norm last."""
    layers: int = causal_lm(model).config.get_text_config().num_hidden_layers
    return layers


def resolve_layers(model: PreTrainedModel, layers: Sequence[int] | None) -> list[int]:
    """Indices into `hidden_states`: the given ones (negative ones count from the end), or all of 1…L.

    Raises:
        FrugalignError: an index is out of range or given twice.
    """
    last = n_layers(model)
    if layers is None:
        return list(range(1, last + 1))
    found = [layer if layer >= 0 else last + 1 + layer for layer in layers]
    for given, layer in zip(layers, found, strict=True):
        if not 0 <= layer <= last:
            raise FrugalignError(f"The model has no layer {given}: hidden_states go from 0 (embeddings) to {last}.")
    if len(set(found)) < len(found) or not found:
        raise FrugalignError(f"layers is {list(layers)}; it must name at least one layer, and none twice.")
    return sorted(found)


def read_ids(encoded: EncodedCompletions, tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """The token ids of every prompt and its answer up to the endpoint, the answer's last sentence end.

    Without a sentence end, the whole answer is read.
    """
    ends = sentence_ends(tokenizer)
    return [ends.read(*row) for row in zip(encoded.prompt_ids, encoded.completion_ids, strict=True)]


@torch.no_grad()
def endpoint_states(
    model: PreTrainedModel,
    sequences: Sequence[Sequence[int]],
    layers: Sequence[int],
    *,
    max_tokens: int | None = None,
    ledger: Ledger | None = None,
) -> Tensor:
    """`hidden_states[l]` at each text's last token, float32 on the CPU, `[N, len(layers), D]`, in the order of the texts.

    Args:
        sequences: token ids, none empty.
        layers: indices into `hidden_states`, as `resolve_layers` gives them.
        max_tokens: padded tokens per batch; the states do not depend on it. Default: as many as keep the activations within a
            quarter of the model's size, but at most 8192.

    Raises:
        FrugalignError: an empty text, or a layer whose states have another width than `hidden_size`.
    """
    states = torch.empty(len(sequences), len(layers), _width(model))
    for rows, mask, found in _passes(model, sequences, layers, max_tokens, ledger):
        end = mask.sum(-1) - 1
        place_of = torch.arange(len(rows), device=mask.device)
        for column, each in enumerate(found):  # a model may be spread over devices
            states[rows, column] = each[place_of.to(each.device), end.to(each.device)].float().cpu()
    return states


@torch.no_grad()
def mean_states(
    model: PreTrainedModel,
    sequences: Sequence[Sequence[int]],
    counts: Sequence[Sequence[int]],
    layers: Sequence[int],
    *,
    max_tokens: int | None = None,
    ledger: Ledger | None = None,
) -> Tensor:
    """`hidden_states[l]` averaged over a part of each text, float32 on the CPU, `[N, len(layers), D]`, in the order of the texts.

    Args:
        sequences: token ids, none empty.
        counts: 1 for every token of a text whose states count, else 0. At least one counts in every text.
        layers, max_tokens: as in `endpoint_states`.

    Raises:
        FrugalignError: as `endpoint_states`.
    """
    states = torch.empty(len(sequences), len(layers), _width(model))
    for rows, mask, found in _passes(model, sequences, layers, max_tokens, ledger):
        length = mask.shape[1]
        weights = torch.tensor(
            [[*counts[row], *[0] * (length - len(counts[row]))] for row in rows], dtype=torch.float32
        )
        weights /= weights.sum(-1, keepdim=True)
        for column, each in enumerate(found):
            states[rows, column] = torch.einsum("bt,btd->bd", weights.to(each.device), each.float()).cpu()
    return states


def _passes(
    model: PreTrainedModel,
    sequences: Sequence[Sequence[int]],
    layers: Sequence[int],
    max_tokens: int | None,
    ledger: Ledger | None,
) -> Iterator[tuple[list[int], Tensor, list[Tensor]]]:
    """Feed all texts. Yields the rows of a batch, their mask `[B, T]`, and the states of every layer, `[B, T, D]` each."""
    device, width = device_of(model), _width(model)
    # Skip the LM head if possible: the logits of a long text are larger than all its states.
    lm = causal_lm(model)
    body: Any = getattr(lm, lm.base_model_prefix, None) or lm
    how: dict[str, Any] = {"output_hidden_states": True, "use_cache": False}
    if is_fully_sharded(lm):
        body = lm
        if "logits_to_keep" in inspect.signature(lm.forward).parameters:
            how["logits_to_keep"] = 1
    for rows in _batches(sequences, max_tokens or affordable_tokens(lm)):
        longest = max(len(sequences[row]) for row in rows)
        ids = torch.zeros(len(rows), longest, dtype=torch.long, device=device)
        mask = torch.zeros_like(ids)
        for place, row in enumerate(rows):
            text = torch.tensor(list(sequences[row]), device=device)
            ids[place, : len(text)], mask[place, : len(text)] = text, 1
        with evaluating(model):
            output = body(input_ids=ids, attention_mask=mask, **how)
        n_tokens = sum(len(sequences[row]) for row in rows)
        advance(FED, n_tokens)
        if ledger is not None:
            ledger.count(lm_forward_tokens=n_tokens)
        found = [output.hidden_states[layer] for layer in layers]
        for layer, each in zip(layers, found, strict=True):
            if each.shape[-1] != width:
                raise FrugalignError(
                    f"The states of layer {layer} have width {each.shape[-1]}, and hidden_size is {width}: choose other layers."
                )
        yield rows, mask, found


def _width(model: PreTrainedModel) -> int:
    width: int = causal_lm(model).config.get_text_config().hidden_size
    return width


def steered_block(model: PreTrainedModel, layer: int) -> nn.Module:
    """The block whose output is `hidden_states[layer]`, for a layer of 1…L−1. The last entry is the state after the final norm.

    Raises:
        FrugalignError: the model has no such block.
    """
    lm, last = causal_lm(model), n_layers(model)
    if not 1 <= layer < last:
        raise FrugalignError(f"The model has no layer {layer} to steer: layers go from 1 to {last - 1}.")
    # Lists of experts may be as long, but they lie deeper.
    stacks = [
        (name, each) for name, each in lm.named_modules() if isinstance(each, nn.ModuleList) and len(each) == last
    ]
    if not stacks:
        raise FrugalignError(f"{type(lm).__name__} has no list of {last} blocks, so its layers cannot be steered.")
    blocks = min(stacks, key=lambda stack: stack[0].count("."))[1]
    return blocks[layer - 1]


def affordable_tokens(lm: Any) -> int:
    """Padded tokens whose activations take a quarter of the model's size: all layers' states, and one layer's inner ones."""
    text = lm.config.get_text_config()
    inner = getattr(text, "intermediate_size", None) or 4 * text.hidden_size
    first = next(lm.parameters())
    per_token = ((n_layers(lm) + 4) * text.hidden_size + 3 * inner) * first.element_size()
    size = sum(parameter.numel() * parameter.element_size() for parameter in lm.parameters())
    return int(max(_LEAST_TOKENS, min(_TOKENS, max(_SMALL, size // 4) // per_token)))


def _batches(sequences: Sequence[Sequence[int]], max_tokens: int) -> Iterator[list[int]]:
    """Batches of rows of similar length, at most `max_tokens` padded tokens each, at least one row."""
    batch: list[int] = []
    longest = 0
    for row in sorted(range(len(sequences)), key=lambda row: len(sequences[row])):
        length = len(sequences[row])
        if length == 0:
            raise FrugalignError(f"Text {row + 1} has no tokens, so it has no endpoint.")
        if batch and max(longest, length) * (len(batch) + 1) > max_tokens:
            yield batch
            batch = []
        batch.append(row)
        longest = length
    if batch:
        yield batch
