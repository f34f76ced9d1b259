"""Not a test: tiny bases with proxies, their bundles, and the states and logits by which the runtime is compared with the library."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from tests.proxy.small_models import build, proxy_for

from frugalign.engines.loading import LoadedModel
from frugalign.engines.transformers import Forward, embedding_rows
from frugalign.proxy.export import export_proxy
from frugalign.proxy.guide import ProxyGuide
from frugalign.proxy.network import ProxyModel
from frugalign_runtime import Bundle

TOKENS = torch.arange(5, 45).reshape(4, 10)


@dataclass
class Base:
    """A model, and the head's input `[N, D]` and logits `[N, V]` of some texts."""

    model: Any
    hidden: torch.Tensor
    logits: torch.Tensor

    @property
    def loaded(self) -> LoadedModel:
        tokenizer: Any = None
        return LoadedModel(self.model, tokenizer, "tiny", None)


def base_of(name: str) -> Base:
    model = build(name)
    with torch.no_grad(), Forward(model) as forward:
        found = forward(TOKENS, attention_mask=torch.ones_like(TOKENS), use_cache=False, keep=TOKENS.shape[1])
    return Base(model, found.hidden.flatten(0, 1), found.logits.flatten(0, 1))


def biased(base: Base, **options: Any) -> ProxyModel:
    """A proxy with no state: one number a token."""
    proxy = proxy_for(base.model, candidate_features="token_bias", **options)
    return proxy


def bundle_of(base: Base, proxy: ProxyModel, name: str = "p", key_dtype: Any = "float32") -> Bundle:
    return replace(export_proxy(proxy, base.loaded, key_dtype=key_dtype).bundle, name=name)


def guided(base: Base, proxies: list[ProxyModel], strengths: list[float]) -> torch.Tensor:
    """The library's own `log π [N, V]`, of rows and strengths that all share."""
    return ProxyGuide.build(proxies, embedding_rows(base.model), strengths).log_probs(base.hidden, base.logits)
