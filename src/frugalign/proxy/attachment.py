"""Guide `model.generate` itself: hooks replace the model's logits by log π, and are removed on detaching.

A pre-hook captures the LM head's input. A forward hook on the causal LM replaces `out.logits [B, T, V]` by the
normalised log π at every position. This happens after soft-capping and scaling. With the tail dropped it is −inf outside
the candidates.
Sampling, beams, streamers, `pipeline`, prompt lookup and assistants see an ordinary model. While attached, the
warpers of the generation config are neutral. One that a caller passes acts on π. A model has one guidance at a time:
what would change that of an open block is refused.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LogitsProcessor, PreTrainedModel, PreTrainedTokenizerBase

from frugalign.base.errors import FrugalignError
from frugalign.engines.artefacts import content_hash
from frugalign.engines.fingerprints import check_base, fingerprint
from frugalign.engines.loading import load_model, load_stored_base
from frugalign.engines.transformers import Forward, causal_lm, embedding_rows, look_ahead, output_embeddings
from frugalign.options.check import check_value
from frugalign.options.kinds import NON_NEGATIVE
from frugalign.proxy.guide import ProxyGuide
from frugalign.proxy.network import PROXY, ProxyModel, load_proxy

_NEUTRAL = {
    "temperature": 1.0,
    "top_k": 0,
    "top_p": 1.0,
    "min_p": None,
    "typical_p": 1.0,
    "epsilon_cutoff": 0.0,
    "eta_cutoff": 0.0,
}
_FLAGS_LOG = logging.getLogger("transformers.generation.configuration_utils")
_LOCK = threading.RLock()
_ATTACHED: dict[int, _Attachment] = {}


def _is_not_ours(record: logging.LogRecord) -> bool:
    """Whether a warning is not about our neutral `top_k`, which greedy decoding would ignore."""
    return "are not valid and may be ignored: ['top_k']" not in record.getMessage()


@dataclass(frozen=True)
class _Member:
    """An open block: its proxy, known by its content, its strength, and its thread."""

    proxy: ProxyModel
    content: str
    strength: float
    thread: int

    @property
    def guidance(self) -> tuple[str, float]:
        return self.content, self.strength


class _Attachment:
    """The hooks on one model, and the open blocks that use them."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = causal_lm(model)
        self.members: list[_Member] = []
        self.guide: ProxyGuide | None = None
        self._local = threading.local()
        self._handles = [
            output_embeddings(model).register_forward_pre_hook(self._catch),
            self.model.register_forward_hook(self._replace, with_kwargs=True),
        ]
        config = self.model.generation_config
        self._saved = (
            {key: getattr(config, key) for key in _NEUTRAL if hasattr(config, key)} if config is not None else {}
        )
        for key, value in _NEUTRAL.items():
            if key in self._saved:
                setattr(config, key, value)
        _FLAGS_LOG.addFilter(_is_not_ours)

    def check(self, new: _Member) -> None:
        """Refuse a block that would change what an open one sees, or would not see what it asks for.

        Raises:
            FrugalignError: another strength of the same proxy, or another proxy in another thread.
        """
        open_ones = {each.guidance: each for each in self.members}
        for each in self.members:
            if each.content == new.content and each.strength != new.strength:
                raise FrugalignError(
                    f"This model is guided by the proxy at strength {each.strength:g} already, so not at {new.strength:g}: "
                    "a model has one strength at a time. Leave the other block first, or load the model twice."
                )
        if set(open_ones) != {new.guidance} and any(each.thread != new.thread for each in self.members):
            raise FrugalignError(
                "This model is guided by another proxy in another thread, which this one would change. "
                "Leave the other block first, or load the model twice."
            )

    def rebuild(self) -> None:
        # A proxy attached twice (re-entry) acts once.
        unique = list({each.content: each for each in self.members}.values())
        self.guide = ProxyGuide.build(
            [each.proxy for each in unique], embedding_rows(self.model), [each.strength for each in unique]
        )

    def detach(self) -> None:
        for handle in self._handles:
            handle.remove()
        for key, value in self._saved.items():
            setattr(self.model.generation_config, key, value)
        if len(_ATTACHED) <= 1:  # no other model
            _FLAGS_LOG.removeFilter(_is_not_ours)

    def _catch(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self._local.hidden = inputs[0]

    def _replace(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        hidden: Tensor | None = getattr(self._local, "hidden", None)
        self._local.hidden = None
        if hidden is None:
            raise FrugalignError(
                f"{type(self.model).__name__} computed logits without calling its LM head, so a proxy cannot guide it."
            )
        guide = self.guide
        if guide is None or getattr(self._local, "looking", False):
            return output
        if not hasattr(output, "logits"):
            raise FrugalignError("A guided model must return its output object: leave return_dict on.")
        logits: Tensor = output.logits
        batch, length, vocabulary = logits.shape
        hidden = hidden[:, -length:].to(logits.device)  # of a head on another device than the outputs
        flat_hidden, flat_logits = hidden.reshape(batch * length, -1), logits.reshape(batch * length, -1)
        lookahead = self._lookahead(kwargs, output, length) if guide.needs_lookahead else None
        guided = guide.log_probs(flat_hidden, flat_logits, lookahead)
        output.logits = guided.reshape(batch, length, vocabulary)
        if kwargs.get("labels") is not None:
            # The loss under π: infinite if the tail is dropped and a label is not a candidate.
            output.loss = self.model.loss_function(logits=output.logits, labels=kwargs["labels"], vocab_size=vocabulary)
        return output

    def _lookahead(self, kwargs: dict[str, Any], output: Any, length: int) -> Any:
        cache = getattr(output, "past_key_values", None)
        if cache is None or length != 1:
            raise FrugalignError(
                "A lookahead proxy needs a KV cache and one position at a time: leave use_cache on, without assistants."
            )
        mask = kwargs.get("attention_mask")
        size = int(cache.get_seq_length())
        rows = len(output.logits)
        if mask is None or mask.dim() != 2:
            mask = torch.ones(rows, size, dtype=torch.long, device=output.logits.device)
        mask = mask[:, :size]
        return partial(look_ahead, self._quiet_forward, cache, mask, mask.sum(-1, keepdim=True))

    def _quiet_forward(self, *args: Any, **kwargs: Any) -> Any:
        """An unguided forward pass from inside the hook."""
        self._local.looking = True
        try:
            with Forward(self.model) as forward:
                return forward(*args, **kwargs)
        finally:
            self._local.looking = False


@contextmanager
def attach(
    model: PreTrainedModel, proxy: ProxyModel | str | Path, *, strength: float = 1.0
) -> Iterator[PreTrainedModel]:
    """Guide `model` with `proxy` inside the block: `with attach(model, proxy): model.generate(…)`.

    While any block is open, the model is guided in every thread, so that streamers and schedulers see it too. Threads
    may share a proxy at one strength; each thread's passes keep their own state. In one thread, two different proxies
    compose.

    Args:
        proxy: a proxy, or the folder or hub id of one, which is loaded and checked against the model.
        strength: λ, at least 0.

    Raises:
        FrugalignError: the proxy is for another model, the proxies do not compose, or an open block guides this model
            at another strength, or in another thread by another proxy.
    """
    check_value("strength", strength, NON_NEGATIVE)
    if not isinstance(proxy, ProxyModel):
        proxy = load_proxy(proxy, model)
    key = id(causal_lm(model))
    member = _Member(proxy, content_hash(PROXY, proxy), float(strength), threading.get_ident())
    with _LOCK:
        attachment = _ATTACHED.get(key)
        if attachment is None:
            attachment = _Attachment(model)
        else:
            attachment.check(member)
        attachment.members.append(member)
        try:
            attachment.rebuild()
        except BaseException:
            _release(key, attachment, member)
            raise
        _ATTACHED[key] = attachment
    try:
        yield model
    finally:
        with _LOCK:
            _release(key, attachment, member)


def _release(key: int, attachment: _Attachment, member: _Member) -> None:
    del attachment.members[next(place for place, each in enumerate(attachment.members) if each is member)]
    if attachment.members:
        attachment.rebuild()
    else:
        attachment.detach()
        _ATTACHED.pop(key, None)


class GuidedModel:
    """A frozen base with its proxy, in one object: `GuidedModel.from_pretrained(folder).generate(**inputs)`.

    `model`, `tokenizer` and `proxy` are the parts. Every other attribute is the base's.
    """

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, proxy: ProxyModel, strength: float = 1.0
    ) -> None:
        self.model, self.tokenizer, self.proxy, self.strength = model, tokenizer, proxy, strength

    @classmethod
    def from_pretrained(
        cls, folder: str | Path, *, strength: float = 1.0, base: str | None = None, **model_arguments: Any
    ) -> GuidedModel:
        """Load the proxy in `folder` and the base it names (or `base`), and check that they belong together."""
        proxy, what = load_proxy(folder), f"The proxy in {folder}"
        stored = proxy.config.base
        if base is None:
            loaded = load_stored_base(stored, what, **model_arguments)
        else:
            own = {key: stored.get(key) for key in ("revision", "adapter")}
            loaded = load_model(base, **(own | model_arguments))
        check_base(stored, fingerprint(loaded.model, loaded.tokenizer, name=loaded.name), what)
        return cls(loaded.model, loaded.tokenizer, proxy, strength)

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """`model.generate`, guided."""
        with attach(self.model, self.proxy, strength=self.strength):
            model: Any = self.model
            return model.generate(*args, **kwargs)

    def attached(self) -> Any:
        """A context manager for code that calls `model.generate` itself, such as a pipeline or an assistant."""
        return attach(self.model, self.proxy, strength=self.strength)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The model's forward pass, its logits replaced by log π."""
        with self.attached():
            return self.model(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        if name == "model" or name.startswith("__"):  # a copy under construction has no model yet
            raise AttributeError(name)
        return getattr(self.model, name)


class ProxyLogitsProcessor(LogitsProcessor):
    """For engines that only accept a `LogitsProcessor`: a pre-hook captures the head's input, and the call returns
    log π.

    Wrong under prompt lookup and assistants, where one call receives the scores of several positions. Use `attach`
    there. It acts before the temperature, so the engine's own temperature must be 1.
    """

    def __init__(self, model: PreTrainedModel, proxy: ProxyModel, strength: float = 1.0) -> None:
        self._guide = ProxyGuide.build([proxy], embedding_rows(model), [strength])
        if self._guide.needs_lookahead:
            raise FrugalignError(
                "A lookahead proxy needs the KV cache, which a LogitsProcessor is not given: use attach instead."
            )
        self._model = causal_lm(model)
        self._local = threading.local()
        self._handle = output_embeddings(model).register_forward_pre_hook(self._catch)

    def _catch(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self._local.hidden = inputs[0]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        if id(self._model) in _ATTACHED:
            raise FrugalignError("A proxy is attached to this model, so a ProxyLogitsProcessor would guide it twice.")
        return self._guide.log_probs(self._local.hidden[:, -1].float(), scores.float())

    def detach(self) -> None:
        """Remove the hook."""
        self._handle.remove()
