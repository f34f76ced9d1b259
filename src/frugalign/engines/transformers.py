"""The transformers engine, and a forward pass that returns a frozen model's logits *and* its LM head's input.

The logits come from the model's own forward, with the architecture's soft-capping and scaling. A pre-hook captures
the head's input. A model with a fused head never calls the module and is refused.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from frugalign.base.errors import FrugalignError
from frugalign.data.chat_template import end_of_turn
from frugalign.engines.base_settings import adapter_values, config_values
from frugalign.engines.cache import copy_cache, holds_attention_alone, ignores_padding, join_caches, select_rows
from frugalign.engines.engine import Capabilities, StepOutput
from frugalign.engines.sentences import SentenceEnds, sentence_ends
from frugalign.engines.sharding import adopt, at_hand, gathered, is_spread, runs_on

_MAY_SHARE: WeakKeyDictionary[PreTrainedModel, bool] = WeakKeyDictionary()
_ROWS: WeakKeyDictionary[nn.Module, Tensor] = WeakKeyDictionary()
"""Copies of the LM heads' rows, of models that hold them elsewhere or in shards."""
_COUNTS_PADDING = {"mpt", "gpt_neo"}
"""Architectures whose attention counts cache positions, padding included. They cannot share a prefix."""


def causal_lm(model: PreTrainedModel) -> PreTrainedModel:
    """The causal LM inside a PEFT wrapper, or the model itself."""
    if hasattr(model, "get_base_model"):
        peft: Any = model
        inner: PreTrainedModel = peft.get_base_model()
        return inner
    return model


def base_parameters(model: PreTrainedModel) -> int:
    """The number of parameters, without those that a PEFT wrapper added."""
    whole = causal_lm(model)
    if whole is model:
        return int(whole.num_parameters())
    wrapper: Any = model
    added = (wrapper.base_model.prefix, ".modules_to_save.")
    return sum(value.numel() for name, value in whole.named_parameters() if not any(part in name for part in added))


def output_embeddings(model: PreTrainedModel) -> nn.Module:
    """The LM head: the module that turns hidden states `[..., D]` into logits `[..., V]`."""
    head = causal_lm(model).get_output_embeddings()
    if head is None:
        raise FrugalignError(f"{type(model).__name__} has no output embeddings, so it cannot be guided.")
    module: nn.Module = head
    return module


def head_weight(model: PreTrainedModel) -> Tensor:
    """The LM head's weight matrix as stored, possibly quantised or a shard."""
    head = output_embeddings(model)
    weight = head.weight
    if not isinstance(weight, Tensor):
        raise FrugalignError(f"The LM head of {type(model).__name__} has no weight matrix to read.")
    return at_hand(head, "weight", weight)


def embedding_rows(model: PreTrainedModel) -> Tensor:
    """Output-embedding rows `e_c`, `[V, D]`, in their dtype, on the device of the model's outputs.

    They are the head's own weight, not copied, if it lies there. Otherwise the copy is made once. A 4-bit head is dequantised.
    """
    lm = causal_lm(model)
    if lm in _ROWS:
        return _ROWS[lm]
    weight: Any = head_weight(model)
    if not weight.is_floating_point():
        import bitsandbytes as bnb

        whole: Tensor = bnb.functional.dequantize_4bit(weight.data, weight.quant_state)
        return whole.to(device_of(model))
    rows = gathered(weight).detach().to(device_of(model))
    own: Any = output_embeddings(model).weight
    if rows.data_ptr() != own.data_ptr():
        _ROWS[lm] = rows
    return rows


def set_up(model: PreTrainedModel) -> None:
    """What a model that is spread over processes needs of all of them at once. Without effect on any other."""
    adopt(model)
    if is_spread(model):
        embedding_rows(model)
        may_share(model)


def end_token_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """All tokens that end a completion: the generation config's, else the tokenizer's, and the one with which the chat
    template ends a turn. The first is the tokenizer's own, if it is one of them."""
    configured = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    own = tokenizer.eos_token_id
    ids = [own] if configured is None else configured if isinstance(configured, (list, tuple)) else [configured]
    ids = [int(token) for token in ids if token is not None]
    ids.sort(key=lambda token: token != own)
    of_turn = end_of_turn(tokenizer, ids)
    return tuple(ids) if of_turn is None or of_turn in ids else (*ids, of_turn)


def sampling_temperature(model: PreTrainedModel) -> float:
    """The temperature at which the model's own generation config samples, or 1."""
    config = getattr(causal_lm(model), "generation_config", None)
    value = getattr(config, "temperature", None) if getattr(config, "do_sample", None) else None
    return float(value) if isinstance(value, (int, float)) and value > 0 else 1.0


def context_length(model: PreTrainedModel) -> int | None:
    """The maximum number of positions by the model's config, or None."""
    config = model.config.get_text_config()
    for name in ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len"):
        value = getattr(config, name, None)
        if isinstance(value, int) and value > 0:
            return value
    return None


@dataclass
class ForwardOutput:
    """`hidden [B, T', D]` and `logits [B, T', V]`, float32, at the last `T'` positions. Also the cache and, if
    requested, all layers."""

    hidden: Tensor
    logits: Tensor
    cache: Any
    layers: tuple[Tensor, ...] | None


class Forward:
    """Forward passes of one model that capture the LM head's input. A context manager that removes its hooks on exit.

    The captured input is kept per thread, so two threads may run the same model at once. Blocks may be nested.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self._caught = threading.local()
        self._handles: list[RemovableHandle] = []
        parameters = inspect.signature(causal_lm(model).forward).parameters
        self._takes_positions = "position_ids" in parameters
        self._takes_keep = "logits_to_keep" in parameters

    def __enter__(self) -> Forward:
        self._handles.append(output_embeddings(self.model).register_forward_pre_hook(self._catch))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._handles.pop().remove()

    def _catch(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self._caught.hidden = inputs[0]

    def __call__(
        self,
        input_ids: Tensor,
        *,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        cache: Any = None,
        use_cache: bool = True,
        keep: int = 1,
        all_layers: bool = False,
    ) -> ForwardOutput:
        """Run the model on `input_ids [B, T]` and return its last `keep` positions.

        Raises:
            FrugalignError: the model computed logits without calling its LM head.
        """
        arguments: dict[str, Any] = {"input_ids": input_ids, "attention_mask": attention_mask, "use_cache": use_cache}
        if self._takes_positions and position_ids is not None:
            arguments["position_ids"] = position_ids
        if self._takes_keep and keep < input_ids.shape[1]:
            arguments["logits_to_keep"] = keep
        if cache is not None:
            arguments["past_key_values"] = cache
        if all_layers:
            arguments["output_hidden_states"] = True
        self._caught.hidden = None
        output = self.model(**arguments)
        hidden = self._caught.hidden
        if hidden is None:
            raise FrugalignError(
                f"{type(causal_lm(self.model)).__name__} computes logits without calling its LM head (a fused head?), "
                "so its hidden states cannot be read."
            )
        self._caught.hidden = None
        if use_cache and not hasattr(output, "past_key_values"):
            raise FrugalignError(
                f"{type(causal_lm(self.model)).__name__} returns no key-value cache, which the decoding loop needs."
            )
        logits = output.logits[:, -keep:].float()
        return ForwardOutput(
            hidden=hidden[:, -keep:].float().to(logits.device),  # of a head on another device than the outputs
            logits=logits,
            cache=output.past_key_values if use_cache else None,
            layers=output.hidden_states if all_layers else None,
        )


def device_of(model: PreTrainedModel) -> torch.device:
    """The device that takes the model's input ids, and to which it returns its outputs."""
    embeddings: Any = causal_lm(model).get_input_embeddings()
    return runs_on(embeddings, embeddings.weight)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode inside the block. The previous mode is restored afterwards."""
    was_training = model.training
    if was_training:
        model.eval()
    try:
        yield
    finally:
        if was_training:
            model.train()


class TransformersEngine:
    """A transformers causal LM, or a PEFT wrapper of one, as an `Engine`. Rows are padded on the left."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        self.model = model
        self.name = type(causal_lm(model)).__name__
        self.capabilities = Capabilities()
        self.device = device_of(model)
        self.end_token_ids = end_token_ids(model, tokenizer)
        self.context_length = context_length(model)
        self._pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0
        self._forward = Forward(model)
        self._tokenizer = tokenizer

    @property
    def dtype(self) -> torch.dtype:
        """In which the model computes its states."""
        return self.model.dtype

    @property
    def sentence_ends(self) -> SentenceEnds:
        """The tokens that end a sentence. A state reward reads the last one."""
        return sentence_ends(self._tokenizer)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Evaluation mode, with the LM head's input captured."""
        with evaluating(self.model), self._forward:
            yield

    def prefill(
        self, rows: Sequence[Sequence[int]], prefix: tuple[Any, int] | None = None
    ) -> tuple[TransformersSequences, StepOutput]:
        """Feed rows of token ids. With a `prefix` (a one-row cache and its length), only the tokens after it are fed."""
        width, device = max(len(ids) for ids in rows), self.device
        input_ids = torch.tensor([[self._pad] * (width - len(ids)) + list(ids) for ids in rows], device=device)
        mask = torch.tensor([[0] * (width - len(ids)) + [1] * len(ids) for ids in rows], device=device)
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        cache = None
        if prefix is not None:
            shared, length = prefix
            cache = copy_cache(shared)
            cache.batch_repeat_interleave(len(rows))
            lengths = mask.sum(-1) - length
            width = int(lengths.max())
            # In a shorter row, padding stands between the prefix and the rest.
            input_ids = input_ids[:, -width:]
            own = torch.arange(width, device=device) >= width - lengths[:, None]
            mask = torch.cat([mask.new_ones(len(rows), length), own.to(mask)], 1)
            positions = (mask.cumsum(-1) - 1)[:, length:]
        is_padded = len({len(ids) for ids in rows}) > 1
        sequences = TransformersSequences(self._forward, mask, positions, cache, is_padded)
        return sequences, sequences.feed(input_ids)

    def prefill_prefix(self, tokens: Sequence[int], longest: int) -> tuple[Any, int] | None:
        """The one-row cache of `tokens` and their number. None if the model would read the padding after them."""
        cache = self._forward(torch.tensor([list(tokens)], device=self.device)).cache
        if self.model.config.model_type in _COUNTS_PADDING or not ignores_padding(cache, longest):
            return None
        return cache, len(tokens)

    def output_embeddings(self) -> Tensor:
        return embedding_rows(self.model)

    def weights_id(self) -> str:
        """A hash of two numbers per tensor and of the config, enough to distinguish the policies of a training run."""
        settings = config_values(causal_lm(self.model).config) | adapter_values(self.model)
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
        for path, module in self.model.named_modules():
            for name, parameter in module.named_parameters(recurse=False):
                values = at_hand(module, name, parameter.detach()).double()
                sums = [float(gathered(each.sum())) for each in (values, values.abs())]
                digest.update(f"{path}.{name} {sums[0]!r} {sums[1]!r}\n".encode())
        return digest.hexdigest()


class TransformersSequences:
    """Rows in progress: the KV cache, and the mask `[B, T]` and positions `[B, T']` for left padding.

    The model gets the mask only if there is padding: transformers looks at its values at every token, for which the host waits.
    """

    def __init__(self, forward: Forward, mask: Tensor, positions: Tensor, cache: Any, is_padded: bool) -> None:
        self._forward, self._mask, self._positions, self._cache = forward, mask, positions, cache
        self._is_padded = is_padded

    def feed(self, input_ids: Tensor, layers: Sequence[int] = ()) -> StepOutput:
        """Feed `input_ids [B, T']`. Mask and positions already cover them."""
        output = self._forward(
            input_ids,
            attention_mask=self._mask if self._is_padded else None,
            position_ids=self._positions,
            cache=self._cache,
            all_layers=bool(layers),
        )
        self._cache = output.cache
        found = None
        if output.layers is not None:
            found = torch.stack([output.layers[layer][:, -1].float() for layer in layers], 1)
        return StepOutput(output.hidden[:, -1], output.logits[:, -1], found)

    def step(self, tokens: Tensor, layers: Sequence[int] = ()) -> StepOutput:
        self._mask = torch.cat([self._mask, self._mask.new_ones(len(tokens), 1)], 1)
        self._positions = self._positions[:, -1:] + 1
        return self.feed(tokens[:, None], layers)

    def select(self, rows: Tensor) -> None:
        select_rows(self._cache, rows)
        self._mask, self._positions = self._mask[rows], self._positions[rows]

    def join(self, other: TransformersSequences) -> bool:
        if not (holds_attention_alone(self._cache) and holds_attention_alone(other._cache)):
            return False
        masks = [self._mask, other._mask]
        padding = [int(mask.any(0).int().argmax()) for mask in masks]  # columns that no row uses any more
        width = max(mask.shape[1] - cut for mask, cut in zip(masks, padding, strict=True))
        join_caches(self._cache, other._cache, padding, width)
        self._is_padded |= other._is_padded or masks[0].shape != masks[1].shape
        self._mask = torch.cat([pad(mask, (width, 0))[:, -width:] for mask in masks])
        self._positions = torch.cat([self._positions[:, -1:], other._positions[:, -1:]])
        return True

    def look_ahead(self, candidates: Tensor) -> Tensor:
        return look_ahead(self._forward, self._cache, self._mask, self._positions[:, -1:] + 1, candidates)


def look_ahead(
    forward: Callable[..., ForwardOutput], cache: Any, mask: Tensor, next_position: Tensor, candidates: Tensor
) -> Tensor:
    """Hidden states `[B, K, D]` after each of `candidates [B, K]`, in one batched pass on a copy of the cache.

    Args:
        cache: holds the prefix; it is not changed.
        mask: `[B, T]` of the prefix.
        next_position: `[B, 1]`, the candidates' position id.
    """
    n = candidates.shape[1]
    expanded = copy_cache(cache)
    expanded.batch_repeat_interleave(n)
    output = forward(
        candidates.reshape(-1, 1),
        attention_mask=torch.cat([mask, mask.new_ones(len(mask), 1)], 1).repeat_interleave(n, 0),
        position_ids=next_position.repeat_interleave(n, 0),
        cache=expanded,
    )
    return output.hidden[:, -1].reshape(*candidates.shape, -1)


@torch.no_grad()
def may_share(model: PreTrainedModel) -> bool:
    """Whether rows may go on from repeated copies of one prompt's cache, padded on the left: found once per model, by one token."""
    if model not in _MAY_SHARE:
        found = model.config.model_type not in _COUNTS_PADDING
        if found:
            output = model(input_ids=torch.zeros(1, 1, dtype=torch.long, device=device_of(model)), use_cache=True)
            found = holds_attention_alone(getattr(output, "past_key_values", None))
        _MAY_SHARE[model] = found
    return _MAY_SHARE[model]
