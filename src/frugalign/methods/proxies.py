"""What the methods that train a proxy share: the frozen base and the proxy, loaded and checked, and the artefact."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from frugalign.base.cards import CardTables, model_card
from frugalign.base.errors import FrugalignError
from frugalign.base.files import CARD_FILE, write_atomic
from frugalign.engines.fingerprints import BaseFingerprint
from frugalign.engines.loading import LoadedModel, load_model, prepare_tokenizer
from frugalign.engines.transformers import device_of, sampling_temperature, set_up
from frugalign.options.loading import model_arguments
from frugalign.proxy.network import ProxyModel, check_proxy, load_proxy, new_proxy
from frugalign.runs.folder import publish
from frugalign.runs.hub import push_if_asked
from frugalign.runs.layout import COSTS_FILE
from frugalign.runs.shard_store import ShardStore


def load_base(
    model: PreTrainedModel | LoadedModel | str, tokenizer: PreTrainedTokenizerBase | None, args: Any
) -> LoadedModel:
    """The frozen LM with a tokenizer that is ready for batches."""
    if isinstance(model, str):
        loaded = load_model(model, **model_arguments(args))
    elif isinstance(model, LoadedModel):
        loaded = model
    elif tokenizer is None:
        raise FrugalignError("A proxy's trainer needs processing_class (the tokenizer) where model is a module.")
    else:
        loaded = LoadedModel(model, tokenizer, "", args.revision)
    loaded = replace(loaded, tokenizer=tokenizer or loaded.tokenizer)
    prepare_tokenizer(loaded.tokenizer)
    set_up(loaded.model)
    return loaded


def prepare_proxy(proxy: ProxyModel | None, loaded: LoadedModel, base: BaseFingerprint, args: Any) -> ProxyModel:
    """The given proxy, checked, or a new one; on the LM's device, with the run's settings in its config."""
    settle_temperature(args, loaded.model, proxy)
    settings = args.network()
    if proxy is None:
        proxy = new_proxy(loaded.model, settings, seed=args.seed)
    else:
        check_proxy(proxy, settings, base)
    args.p_t = float(proxy.config.p_t)
    config = proxy.config
    config.base, config.trained_on = base.to_dict(), None
    config.max_new_tokens, config.max_prompt_length = settings["max_new_tokens"], settings["max_prompt_length"]
    for token in ("bos_token_id", "eos_token_id", "pad_token_id"):
        # Trainer aligns the model's special tokens with the tokenizer's, and warns if they differ.
        setattr(config, token, getattr(loaded.tokenizer, token))
    nn.Module.to(proxy, device_of(loaded.model))
    return proxy


def given_proxy(args: Any) -> ProxyModel | None:
    """The proxy that `args.initial_proxy` names, to start from."""
    return None if args.initial_proxy is None else load_proxy(args.initial_proxy)


def settle_temperature(args: Any, model: PreTrainedModel, proxy: ProxyModel | None) -> None:
    """Fill in a temperature that was not given: that of the proxy to start from, else the model's own."""
    if args.temperature is None:
        args.temperature = sampling_temperature(model) if proxy is None else float(proxy.config.temperature)


def feature_store(args: Any) -> ShardStore:
    """Where the features of stored answers are kept. `args`: a config with `groups.Cache`."""
    folder = args.cache_dir or Path.home() / ".cache" / "frugalign" / "features"
    return ShardStore(folder, max_gib=args.max_cache_gib)


def save_proxy(trainer: Any, folder: Path, learned: str) -> None:
    """Write a trainer's proxy, its card and the costs into the run folder, and upload it if that is asked for.

    `learned`: a sentence for the card on the signal.
    """
    if not trainer.is_world_process_zero():
        return
    proxy = trainer.accelerator.unwrap_model(trainer.model)
    base = proxy.config.base
    card = model_card(
        title=f"Proxy for {base['name'] or 'a causal language model'}",
        description="Accepts or rejects every token that its frozen base proposes (Proxy-RLHF, arXiv 2403.04283). "
        + learned,
        base_model=base["name"],
        tables=CardTables(settings=trainer.args.options(), costs=trainer.ledger.table()),
        usage=f"from frugalign import GuidedModel\n\nmodel = GuidedModel.from_pretrained({str(folder)!r})",
    )
    write_atomic(folder / CARD_FILE, card)
    trainer.ledger.save(folder / COSTS_FILE)
    publish(folder, proxy.save_pretrained)
    push_if_asked(folder, trainer.args)
