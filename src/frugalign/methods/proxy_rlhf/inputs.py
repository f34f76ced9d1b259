"""What a `ProxyTrainer` is given, loaded and checked: the frozen base and the proxy."""

from __future__ import annotations

from dataclasses import replace

from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from frugalign.base.errors import FrugalignError
from frugalign.engines.fingerprints import BaseFingerprint
from frugalign.engines.loading import LoadedModel, load_model, prepare_tokenizer
from frugalign.engines.transformers import device_of
from frugalign.methods.proxy_rlhf.config import ProxyConfig
from frugalign.options.loading import model_arguments
from frugalign.proxy.network import ProxyModel, check_proxy, new_proxy


def load_base(
    model: PreTrainedModel | LoadedModel | str, tokenizer: PreTrainedTokenizerBase | None, args: ProxyConfig
) -> LoadedModel:
    """The frozen LM with a tokenizer that is ready for batches."""
    if isinstance(model, str):
        loaded = load_model(model, **model_arguments(args))
    elif isinstance(model, LoadedModel):
        loaded = model
    elif tokenizer is None:
        raise FrugalignError("ProxyTrainer needs processing_class (the tokenizer) where model is a module.")
    else:
        loaded = LoadedModel(model, tokenizer, "", args.revision)
    loaded = replace(loaded, tokenizer=tokenizer or loaded.tokenizer)
    prepare_tokenizer(loaded.tokenizer)
    return loaded


def prepare_proxy(
    proxy: ProxyModel | None, loaded: LoadedModel, base: BaseFingerprint, args: ProxyConfig
) -> ProxyModel:
    """The given proxy, checked, or a new one; on the LM's device, with the run's settings in its config."""
    if proxy is None:
        proxy = new_proxy(loaded.model, args.network(), seed=args.seed)
    else:
        check_proxy(proxy, args.network(), base)
    config = proxy.config
    config.base, config.trained_on = base.to_dict(), None
    config.max_new_tokens, config.max_prompt_length = args.max_new_tokens, args.max_prompt_length
    for token in ("bos_token_id", "eos_token_id", "pad_token_id"):
        # Trainer aligns the model's special tokens with the tokenizer's, and warns if they differ.
        setattr(config, token, getattr(loaded.tokenizer, token))
    nn.Module.to(proxy, device_of(loaded.model))
    return proxy
