"""A base from a GGUF file, as llama.cpp runs it: transformers reads weights, config and tokenizer from the one file.

Quantised weights are unpacked, so the model takes as much memory as any other and can be trained and saved. They keep the
values that they have in the file.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers.utils.import_utils import is_gguf_available

from frugalign.base.errors import FrugalignError
from frugalign.base.specs import is_gguf, local_hint

_MAGIC = b"GGUF"


def gguf_source(name: str, path: Path | None) -> dict[str, str]:
    """The arguments with which transformers' loaders find a GGUF file: its folder, and its name in it. Empty if `path` is
    something else.

    Raises:
        FrugalignError: the file is missing or no GGUF file, or the package that reads it is not installed.
    """
    if path is None or not is_gguf(path) or path.is_dir():
        return {}
    if not path.is_file():
        raise FrugalignError(f"No model in {name}: there is no such file{local_hint(name)}.")
    with path.open("rb") as file:
        if file.read(len(_MAGIC)) != _MAGIC:
            raise FrugalignError(f"{name} is not a GGUF file, or it is damaged: it does not begin with GGUF.")
    if not is_gguf_available():
        raise FrugalignError(
            f"Reading {name} needs the package gguf, which is not installed: pip install 'frugalign[gguf]'."
        )
    return {"pretrained_model_name_or_path": str(path.parent), "gguf_file": path.name}


def unpacking() -> Any:
    """The setting that makes transformers unpack quantised weights while it loads them."""
    from transformers import GgufConfig

    return GgufConfig(dequantize=True)


def forget_quantisation(model: Any) -> None:
    """Make an unpacked model a plain one. transformers would neither train nor save it, since the file was quantised."""
    for owner, name in ((model, "hf_quantizer"), (model.config, "quantization_config")):
        if name in vars(owner):
            delattr(owner, name)
