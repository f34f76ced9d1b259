"""Guide `model.generate` itself: hooks replace the model's logits by log π, and are removed on detaching.

A pre-hook captures the LM head's input. A forward hook on the causal LM replaces `out.logits [B, T, V]` by the
normalised log π at every position, −inf outside the candidates. This happens after soft-capping and scaling.
Sampling, beams, streamers, `pipeline`, prompt lookup and assistants see an ordinary model. While attached, the
warpers of the generation config are neutral. One that a caller passes acts on π. Several proxies attached to one
model compose.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LogitsProcessor, PreTrainedModel, PreTrainedTokenizerBase

from frugalign.base.errors import FrugalignError
from frugalign.base.files import load_config
from frugalign.engines.loading import load_model, load_stored_base
from frugalign.engines.transformers import Forward, causal_lm, embedding_rows, look_ahead, output_embeddings
from frugalign.proxy.guide import ProxyGuide
from frugalign.proxy.network import ProxyModel, ProxyModelConfig, load_proxy

_NEUTRAL = {
    "temperature": 1.0,
    "top_k": 0,
    "top_p": 1.0,
    "min_p": None,
    "typical_p": 1.0,
    "epsilon_cutoff": 0.0,
    "eta_cutoff": 0.0,
}
_LOCK = threading.RLock()
_ATTACHED: dict[int, _Attachment] = {}


class _Attachment:
    """The hooks on one model, and the proxies that use them."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = causal_lm(model)
        self.members: list[tuple[ProxyModel, float]] = []
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

    def rebuild(self) -> None:
        # A proxy attached twice with the same strength (re-entry) acts once.
        unique = list({(id(proxy), strength): (proxy, strength) for proxy, strength in self.members}.values())
        self.guide = ProxyGuide.build(
            [proxy for proxy, _ in unique], embedding_rows(self.model), [strength for _, strength in unique]
        )

    def detach(self) -> None:
        for handle in self._handles:
            handle.remove()
        for key, value in self._saved.items():
            setattr(self.model.generation_config, key, value)

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
        hidden = hidden[:, -length:]
        flat_hidden, flat_logits = (
            hidden.reshape(batch * length, -1).float(),
            logits.reshape(batch * length, -1).float(),
        )
        guided = guide.dense_log_probs(flat_hidden, flat_logits)
        if guided is None:
            lookahead = self._lookahead(kwargs, output, length) if guide.needs_lookahead else None
            ids, log_pi = guide.log_probs(flat_hidden, flat_logits, lookahead)
            guided = torch.full((batch * length, vocabulary), -torch.inf, device=logits.device)
            # Padding columns carry token 0 with log π = −inf: reduce by the maximum so that a real candidate 0 survives them.
            guided.scatter_reduce_(-1, ids, log_pi, "amax")
        output.logits = guided.reshape(batch, length, vocabulary)
        if kwargs.get("labels") is not None:
            # The loss under π: infinite if a label is not a candidate.
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
def attach(model: PreTrainedModel, proxy: ProxyModel, *, strength: float = 1.0) -> Iterator[PreTrainedModel]:
    """Guide `model` with `proxy` inside the block: `with attach(model, proxy): model.generate(…)`.

    Re-entrant and thread-safe. While any block is open, the model is guided in every thread. Each thread's passes
    keep their own state. Two different proxies compose.

    Raises:
        FrugalignError: the proxy is for another width or vocabulary, or the proxies do not compose.
    """
    key, member = id(causal_lm(model)), (proxy, float(strength))
    with _LOCK:
        attachment = _ATTACHED.get(key) or _Attachment(model)
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


def _release(key: int, attachment: _Attachment, member: tuple[ProxyModel, float]) -> None:
    index = next(
        i for i, (proxy, strength) in enumerate(attachment.members) if proxy is member[0] and strength == member[1]
    )
    del attachment.members[index]
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
        stored = load_config(folder, ProxyModelConfig, "proxy").base
        what = f"The proxy in {folder}"
        loaded = (
            load_stored_base(stored, what, **model_arguments)
            if base is None
            else load_model(base, **({key: stored.get(key) for key in ("revision", "adapter")} | model_arguments))
        )
        proxy = load_proxy(folder, loaded.model, loaded.tokenizer, name=loaded.name)
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
        self._local = threading.local()
        self._handle = output_embeddings(model).register_forward_pre_hook(self._catch)

    def _catch(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self._local.hidden = inputs[0]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        ids, log_pi = self._guide.log_probs(self._local.hidden[:, -1].float(), scores.float())
        return torch.full_like(scores, -torch.inf, dtype=torch.float32).scatter_reduce_(-1, ids, log_pi, "amax")

    def detach(self) -> None:
        """Remove the hook."""
        self._handle.remove()
