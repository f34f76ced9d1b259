"""Load a frozen causal language model and its tokenizer: one that the user names, or the base that an artefact names.

The user may name a hub id, a folder or a `package.module:attribute`. A name that is stored in an artefact is a hub id
or a folder, and is never imported. Weights and adapters must be safetensors, and no code of a model's repository is
run. A base that needs either is refused.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES

from frugalign.base.errors import FrugalignError
from frugalign.base.files import ADAPTER_CONFIG_FILE, ADAPTER_WEIGHTS_FILE, MODEL_CONFIG_FILE
from frugalign.base.specs import is_attribute, resolve_name
from frugalign.engines.transformers import causal_lm


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
) -> LoadedModel:
    """Load a base for guidance.

    Args:
        name_or_path: hub id, local folder, or `package.module:attribute` that names a folder.
        dtype: `"float32"`, `"bfloat16"`, `"float16"` or `"auto"` (as saved). Default: as saved with a GPU, else
            float32.
        device_map: as in transformers. Default: the GPU if available, else the CPU.
        load_in_4bit: NF4 weights through bitsandbytes, which must be installed.
        adapter: a PEFT adapter that belongs to the frozen base.

    Raises:
        FrugalignError: the folder is missing or holds no causal language model.
    """
    loaded = _load(
        resolve_name(name_or_path),
        revision=revision,
        dtype=dtype,
        device_map=device_map,
        load_in_4bit=load_in_4bit,
        adapter=adapter,
    )
    return replace(loaded, name=name_or_path)


def load_stored_base(stored: Mapping[str, Any], what: str, **arguments: Any) -> LoadedModel:
    """Load the base that an artefact names, at its revision and with its adapter. Nothing is imported.

    Args:
        stored: the artefact's `base`.
        what: the artefact, for messages.
        arguments: as for `load_model`, without `name_or_path`. They take precedence.

    Raises:
        FrugalignError: the stored name is neither a folder nor a hub id, or `load_model` would refuse the base.
    """
    found: dict[str, Any] = {key: stored.get(key) for key in ("name", "revision", "adapter")}
    for key, value in found.items():
        if not (isinstance(value, str) or (value is None and key != "name")) or is_attribute(str(value)):
            raise FrugalignError(
                f"{what} names {value!r} as the {key} of its base. A stored name must be a folder or a hub id, and code is never run."
            )
    return _load(str(found.pop("name")), **(found | arguments))


def _load(
    name_or_path: str,
    *,
    revision: str | None = None,
    dtype: str | None = None,
    device_map: str | None = None,
    load_in_4bit: bool = False,
    adapter: str | None = None,
) -> LoadedModel:
    path = _checked(name_or_path, revision)
    on_gpu = torch.cuda.is_available() and device_map != "cpu"
    arguments: dict[str, Any] = {
        "revision": revision,
        "dtype": resolve_dtype(dtype, on_gpu),
        "use_safetensors": True,
        # Explicit, since transformers would otherwise prompt on the terminal.
        "trust_remote_code": False,
    }
    if device_map is not None or on_gpu:
        arguments["device_map"] = device_map or default_device()
    if load_in_4bit:
        from transformers import BitsAndBytesConfig

        arguments["quantization_config"] = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(path, output_loading_info=True, **arguments)
        tokenizer = AutoTokenizer.from_pretrained(path, revision=revision, padding_side="left", trust_remote_code=False)
    except (OSError, ValueError, ImportError, SafetensorError) as error:
        raise FrugalignError(f"Cannot load the model {name_or_path!r}: {_first_sentence(error)}") from error
    model, report = loaded
    if missing := sorted(report["missing_keys"]):
        # transformers would continue with random weights in their place.
        raise FrugalignError(
            f"The model {name_or_path!r} is incomplete: its files lack {len(missing)} weights, such as {missing[0]}."
        )
    if adapter is not None:
        model = attach_adapter(model, adapter)
    prepare_tokenizer(tokenizer)
    model.eval().requires_grad_(False)
    return LoadedModel(model=model, tokenizer=tokenizer, name=name_or_path, revision=revision)


def check_model(name_or_path: str, *, revision: str | None = None) -> str:
    """The folder or hub id of a model that the user names. Its config must exist; its weights are not read.

    Raises:
        FrugalignError: there is no config.
    """
    return _checked(resolve_name(name_or_path), revision)


def _checked(path: str, revision: str | None) -> str:
    name_or_path = path
    looks_local = path.startswith((".", "/", "~")) or Path(path).exists()
    if looks_local:
        path = str(Path(path).expanduser())
    if looks_local and not Path(path).joinpath(MODEL_CONFIG_FILE).is_file():
        raise FrugalignError(f"No model in {name_or_path}: the folder has no {MODEL_CONFIG_FILE}.")
    try:
        AutoConfig.from_pretrained(path, revision=revision, trust_remote_code=False)
    except (OSError, ValueError, ImportError) as error:
        raise FrugalignError(f"Cannot load the model {name_or_path!r}: {_first_sentence(error)}") from error
    return path


def attach_adapter(model: PreTrainedModel, adapter: str) -> PreTrainedModel:
    """The model with a frozen PEFT adapter from a local folder or the hub.

    Raises:
        FrugalignError: the adapter is missing or does not fit the model.
    """
    from huggingface_hub import snapshot_download
    from peft import PeftModel

    try:
        folder = adapter
        if not Path(adapter).is_dir():
            # Without safetensors, PEFT would fall back to another format.
            folder = snapshot_download(adapter, allow_patterns=[ADAPTER_CONFIG_FILE, "*.safetensors"])
        if not Path(folder).joinpath(ADAPTER_WEIGHTS_FILE).is_file():
            raise FrugalignError(f"No adapter in {adapter}: it has no {ADAPTER_WEIGHTS_FILE}.")
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Found missing adapter keys")  # refused below
            adapted: Any = PeftModel.from_pretrained(model, folder)
            # Loaded again to get the report that `from_pretrained` does not return.
            report = adapted.load_adapter(folder, "default")
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise FrugalignError(f"Cannot load the adapter {adapter!r}: {_first_sentence(error)}") from error
    if odd := sorted(report.missing_keys) + sorted(report.unexpected_keys):
        raise FrugalignError(
            f"The adapter {adapter!r} does not fit this model: {len(odd)} weights of one have no counterpart in the other, such as {odd[0]}."
        )
    adapted.eval().requires_grad_(False)
    frozen: PreTrainedModel = adapted
    return frozen


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


def _first_sentence(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if len(text) <= 300 else text[:300] + "…"


def has_classifier(model: PreTrainedModel) -> bool:
    """Whether transformers has a sequence classifier for this architecture."""
    return causal_lm(model).config.model_type in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES
