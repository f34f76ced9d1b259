"""Load a frozen causal language model and its tokenizer: one that the user names, or the base that an artefact names.

The user may name a hub id, a folder, a GGUF file or a `package.module:attribute`. A name that is stored in an artefact is
a hub id, a folder or a GGUF file, and is never imported. Weights and adapters must be safetensors, and no code of a model's repository is
run. A base that needs either is refused.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES

from frugalign.base.errors import FrugalignError
from frugalign.base.files import ADAPTER_CONFIG_FILE, MODEL_CONFIG_FILE
from frugalign.base.specs import is_attribute, is_model_path, local_hint, local_path, resolve_name
from frugalign.base.wording import shown
from frugalign.engines.adapters import attach_adapter, refused
from frugalign.engines.gguf import forget_quantisation, gguf_source, unpacking
from frugalign.engines.model_records import check_model_record
from frugalign.engines.sharding import spread
from frugalign.engines.transformers import causal_lm, set_up

_DIGITS = re.compile(r"\d+")


@dataclass(frozen=True)
class LoadedModel:
    """A frozen model in evaluation mode, and the tokenizer that pads on the left."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    name: str
    revision: str | None


def load_model(
    name_or_path: str,
    *,
    revision: str | None = None,
    dtype: str | None = None,
    device_map: str | None = None,
    load_in_4bit: bool = False,
    adapter: str | None = None,
    tp_size: int = 1,
    fsdp_size: int = 1,
) -> LoadedModel:
    """Load a base for guidance.

    Args:
        name_or_path: hub id, local folder, GGUF file, or `package.module:attribute` that names a folder.
        dtype: `"float32"`, `"bfloat16"`, `"float16"` or `"auto"` (as saved). Default: as saved with a GPU, else
            float32.
        device_map: as in transformers. Default: the GPU if available, else the CPU.
        load_in_4bit: NF4 weights through bitsandbytes, which must be installed.
        adapter: a PEFT adapter that belongs to the frozen base.
        tp_size, fsdp_size: spread the weights over this many processes of `torchrun` (see `engines.sharding`), which
            all call this.

    Raises:
        FrugalignError: the folder is missing or holds no causal language model, or the model cannot be spread like this.
    """
    loaded = _load(
        resolve_name(name_or_path),
        revision=revision,
        dtype=dtype,
        device_map=device_map,
        load_in_4bit=load_in_4bit,
        adapter=adapter,
        tp_size=tp_size,
        fsdp_size=fsdp_size,
    )
    return replace(loaded, name=name_or_path)


def load_stored_base(stored: Mapping[str, Any], what: str, **arguments: Any) -> LoadedModel:
    """Load the base that an artefact names, at its revision and with its adapter. Nothing is imported.

    Args:
        stored: the artefact's `base`.
        what: the artefact, for messages.
        arguments: as for `load_model`, without `name_or_path`. They take precedence.

    Raises:
        FrugalignError: the stored name is neither a folder, a GGUF file nor a hub id, or `load_model` would refuse the base.
    """
    found: dict[str, Any] = {key: stored.get(key) for key in ("name", "revision", "adapter")}
    for key, value in found.items():
        if not (isinstance(value, str) or (value is None and key != "name")) or is_attribute(str(value)):
            raise FrugalignError(
                f"{what} names {value!r} as the {key} of its base. A stored name must be a folder or a hub id, and code is never run."
            )
    name = str(found.pop("name"))
    path = local_path(name)
    if path is not None and not is_model_path(path):
        raise FrugalignError(
            f"{what} belongs to the model in {name}, which is not there. Put it back, or name it yourself."
        )
    return _load(name, **(found | arguments))


def _load(
    name_or_path: str,
    *,
    revision: str | None = None,
    dtype: str | None = None,
    device_map: str | None = None,
    load_in_4bit: bool = False,
    adapter: str | None = None,
    tp_size: int = 1,
    fsdp_size: int = 1,
) -> LoadedModel:
    check_device(device_map)
    source, config = _checked(name_or_path, revision)
    path, is_packed = source["pretrained_model_name_or_path"], "gguf_file" in source
    on_gpu = torch.cuda.is_available() and device_map != "cpu"
    others = {"load_in_4bit": load_in_4bit, "adapter": adapter, "A GGUF file": is_packed}
    placement = spread(config, tp_size, fsdp_size, **others, **_placed(device_map))
    if not placement and (device_map is not None or on_gpu):
        placement = {"device_map": device_map or default_device()}
    arguments: dict[str, Any] = {
        **source,
        **placement,
        "config": config,
        "dtype": resolve_dtype(dtype, on_gpu),
        "use_safetensors": True,
        # Explicit, since transformers would otherwise prompt on the terminal.
        "trust_remote_code": False,
    }
    if is_packed:
        if load_in_4bit:
            raise FrugalignError(f"load_in_4bit is for plain weights, and those in {name_or_path} are a GGUF file's.")
        arguments["quantization_config"] = unpacking()
    elif load_in_4bit:
        if find_spec("bitsandbytes") is None:
            raise FrugalignError("load_in_4bit needs the package bitsandbytes, which is not installed.")
        from transformers import BitsAndBytesConfig

        arguments["quantization_config"] = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    with refused(f"Cannot load the model {name_or_path!r}"):
        loaded: Any = AutoModelForCausalLM.from_pretrained(output_loading_info=True, **arguments)
        tokenizer = AutoTokenizer.from_pretrained(**source, padding_side="left", trust_remote_code=False)
    model, report = loaded
    if is_packed:
        forget_quantisation(model)
    else:
        check_model_record(path, revision)
    if missing := sorted(report["missing_keys"]):
        # transformers would continue with random weights in their place.
        raise FrugalignError(
            f"The model {name_or_path!r} is incomplete: its files lack {len(missing)} weights, such as {missing[0]}."
        )
    own = {_DIGITS.sub("#", key) for key in model.state_dict()}
    if surplus := sorted(key for key in report["unexpected_keys"] if _DIGITS.sub("#", key) in own):
        # transformers would leave out the last layers.
        raise FrugalignError(
            f"The config of the model {name_or_path!r} does not match its weights: the files hold {surplus[0]} as well."
        )
    prepare_tokenizer(tokenizer)
    _check_fits(model, tokenizer, name_or_path)
    if adapter is not None:
        model = attach_adapter(model, adapter, tokenizer)
    model.eval().requires_grad_(False)
    set_up(model)
    return LoadedModel(model=model, tokenizer=tokenizer, name=name_or_path, revision=revision)


def _placed(device_map: str | None) -> dict[str, Any]:
    """The options that place a model for one process. Without a GPU, `use_cpu` says what holds anyway."""
    on_cpu = device_map == "cpu"
    return {"device_map": None if on_cpu else device_map, "use_cpu": on_cpu and torch.cuda.is_available()}


def check_model(name_or_path: str, *, revision: str | None = None) -> str:
    """The folder, GGUF file or hub id of a model that the user names. Its config must exist; its weights are not read.

    Raises:
        FrugalignError: there is no config.
    """
    name = resolve_name(name_or_path)
    _checked(name, revision)
    path = local_path(name)
    return name if path is None else str(path)


def _checked(name: str, revision: str | None) -> tuple[dict[str, Any], Any]:
    """Where transformers finds a model, and its config without an implementation that would be fetched and run."""
    path = local_path(name)
    packed = gguf_source(name, path)
    if not packed and path is not None and not os.path.isfile(path / MODEL_CONFIG_FILE):
        is_adapter = os.path.isfile(path / ADAPTER_CONFIG_FILE)
        hint = "; it is an adapter, so give it as adapter" if is_adapter else ""
        raise FrugalignError(f"No model in {name}: the folder has no {MODEL_CONFIG_FILE}{hint or local_hint(name)}.")
    found: dict[str, Any] = {
        "pretrained_model_name_or_path": name if path is None else str(path),
        **packed,
        "revision": revision,
    }
    with refused(f"Cannot load the model {name!r}"):
        config: Any = AutoConfig.from_pretrained(**found, trust_remote_code=False)
        # A config may name attention kernels on the hub, which are code.
        config._attn_implementation = config._experts_implementation = None
        layers = getattr(config.get_text_config(), "num_hidden_layers", 1)
    if not isinstance(layers, int) or layers < 1:
        raise FrugalignError(f"The config of the model {name!r} is damaged: num_hidden_layers is {layers!r}.")
    return found, config


def _check_fits(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    """Check that every token that a text can contain has a row in the embedding.

    A special token without one is allowed unless it opens, closes or pads a text, or is part of the chat template: real
    models have some for images.

    Raises:
        FrugalignError: a token has no row.
    """
    embedding: Any = model.get_input_embeddings()
    rows = int(embedding.weight.shape[0])
    beyond = {token: number for token, number in tokenizer.get_vocab().items() if number >= rows}
    special = {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special}
    used = (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token)
    template = str(tokenizer.chat_template or "")
    for token, number in beyond.items():
        if token in used or token in template or token not in special:
            raise FrugalignError(
                f"The tokenizer and the weights in {name} do not belong together: the token {token!r} has number {number}, and the embedding has {rows} rows."
            )


_PLANS = {"auto", "balanced", "balanced_low_0", "sequential"}
"""Words with which transformers places a model itself."""


def check_device(device_map: str | None) -> None:
    """Check that the device exists here, before anything is read.

    Raises:
        FrugalignError: it does not, or is no device.
    """
    if device_map is None or device_map in _PLANS:
        return
    try:
        device = torch.device(device_map)
    except RuntimeError as error:
        known = f"cpu, cuda, cuda:0, mps, {', '.join(sorted(_PLANS))}"
        raise FrugalignError(
            f"device_map is {shown(device_map)}; it must be a device or a word such as {known}."
        ) from error
    if device.type == "cuda" and (not torch.cuda.is_available() or (device.index or 0) >= torch.cuda.device_count()):
        has = f"torch sees {torch.cuda.device_count()} of them" if torch.cuda.is_available() else "torch sees none here"
        raise FrugalignError(f"device_map is {device_map}, which needs that GPU, and {has}. Leave it out, or give cpu.")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise FrugalignError("device_map is mps, and there is no Apple GPU here. Leave it out, or give cpu.")
    if device.type == "meta":
        raise FrugalignError("device_map is meta, where a model has no weights.")


def default_device(use_cpu: bool = False) -> str:
    """The GPU of this process if available, else the CPU."""
    return "cpu" if use_cpu or not torch.cuda.is_available() else f"cuda:{os.environ.get('LOCAL_RANK', 0)}"


def prepare_tokenizer(tokenizer: PreTrainedTokenizerBase) -> None:
    """Set left padding, in place. Without a pad token, the end token is used."""
    tokenizer.padding_side = "left"
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token


def resolve_dtype(dtype: str | None, on_gpu: bool) -> torch.dtype | str:
    """The dtype to load weights in: the given one, else as saved on a GPU and float32 on the CPU."""
    if dtype is None:
        return "auto" if on_gpu else torch.float32
    if dtype == "auto":
        return "auto"
    resolved = getattr(torch, dtype, None)
    if not isinstance(resolved, torch.dtype) or not resolved.is_floating_point:
        raise FrugalignError(f"--dtype {dtype} is not a floating-point type; use float32, bfloat16, float16 or auto.")
    return resolved


def has_classifier(model: PreTrainedModel) -> bool:
    """Whether transformers has a sequence classifier for this architecture."""
    return causal_lm(model).config.model_type in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES
