"""Guide `model.generate` itself: hooks that replace the model's logits by log π, and leave no trace when detached.

A pre-hook on the LM head catches what it reads; a forward hook on the causal LM replaces `out.logits [B, T, V]` by the
normalised log π (−inf outside the candidates) after soft-capping and scaling, at every position of a chunk. Sampling, beams, streamers,
`pipeline`, prompt lookup and assistants see an ordinary model. While attached, the generation config's own warpers
are neutral; one that a caller passes acts on π. Several proxies attached to one model compose.
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
from frugalign.engines.loading import load_model
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
    """The hooks on one model and the proxies that act through them."""

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
        # Equal members attached twice (re-entry) act once.
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
            raise FrugalignError("A guided model answers with its output object: leave return_dict on.")
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
            # The loss under π; infinite where a label is no candidate.
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
        """A forward pass from inside the hook, which is not guided itself."""
        self._local.looking = True
        try:
            with Forward(self.model) as forward:
                return forward(*args, **kwargs)
        finally:
            self._local.looking = False


@contextmanager
def attach(model: PreTrainedModel, proxy: ProxyModel, *, strength: float = 1.0) -> Iterator[PreTrainedModel]:
    """Guide `model` with `proxy` inside the block: `with attach(model, proxy): model.generate(…)`.

    Re-entrant, and safe with threads: the model is guided for every thread while at least one block is open, and each
    thread's passes keep their own state. Two different proxies compose.

    Raises:
        FrugalignError: a proxy for another width or vocabulary, or proxies that do not compose.
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

    `model`, `tokenizer` and `proxy` are the parts; everything else asked of it is asked of the base.
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
        loaded = load_model(
            base or stored["name"], **({key: stored.get(key) for key in ("revision", "adapter")} | model_arguments)
        )
        proxy = load_proxy(folder, loaded.model, loaded.tokenizer, name=loaded.name)
        return cls(loaded.model, loaded.tokenizer, proxy, strength)

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """`model.generate`, guided."""
        with attach(self.model, self.proxy, strength=self.strength):
            model: Any = self.model
            return model.generate(*args, **kwargs)

    def attached(self) -> Any:
        """The context manager, for what calls `model.generate` itself (a pipeline, an assistant)."""
        return attach(self.model, self.proxy, strength=self.strength)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The model's forward pass, its logits replaced by log π."""
        with self.attached():
            return self.model(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        if name == "model" or name.startswith("__"):  # a copy under construction has no model to ask yet
            raise AttributeError(name)
        return getattr(self.model, name)


class ProxyLogitsProcessor(LogitsProcessor):
    """For engines that take nothing but a `LogitsProcessor`: catches the head's input by a pre-hook and returns log π.

    Wrong under prompt lookup and assistants, where the scores of several positions pass through one call: use `attach` there.
    Acts before the temperature, so the engine's own temperature must be 1.
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
