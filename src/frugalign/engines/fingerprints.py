"""Fingerprints of a base model: what an artefact stores about its base, and the error if another base is given.

Values are rounded to bfloat16 before hashing. The same base therefore has the same fingerprint in float32 and
bfloat16. In 4-bit, only the parts that are not quantised are compared.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from frugalign.base.errors import FrugalignError
from frugalign.base.specs import is_attribute
from frugalign.engines.transformers import causal_lm, head_weight

_SAMPLE = 4096


@dataclass(frozen=True)
class BaseFingerprint:
    """What identifies a frozen base. All fields except name and revision must match for an artefact to load."""

    name: str
    revision: str | None
    architecture: str
    width: int
    vocabulary: int
    tokenizer: str
    weights: str
    layers: str | None
    adapter: str | None = None
    """The name of a PEFT adapter that is part of the base. Its weights are not compared."""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def identity(self) -> dict[str, Any]:
        """The fields that identify the base regardless of its path and name."""
        return {name: getattr(self, name) for name in ("architecture", "tokenizer", "weights", "layers")}

    def differences(self, other: BaseFingerprint) -> list[str]:
        """The differences in words. `self` is the base that an artefact was made for."""
        words = {
            "architecture": "architecture",
            "width": "hidden width",
            "vocabulary": "vocabulary size",
            "tokenizer": "tokenizer",
            "weights": "weights of embeddings and norms",
            "layers": "weights of the layers",
        }
        found = []
        for field, word in words.items():
            mine, theirs = getattr(self, field), getattr(other, field)
            if mine is None or theirs is None or mine == theirs:
                continue
            readable = field in ("architecture", "width", "vocabulary")
            found.append(f"{word} ({mine} there, {theirs} here)" if readable else word)
        return found


def fingerprint(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    name: str = "",
    revision: str | None = None,
    adapter: str | None = None,
) -> BaseFingerprint:
    """Fingerprint a loaded base. Takes a few milliseconds at any model size.

    Args:
        name: where it was loaded from. `package.module:attribute` is replaced by the folder that it stood for.
    """
    lm = causal_lm(model)
    text = lm.config.get_text_config()
    embeddings, rest, quantised = [], [], False
    for key, value in sorted(model.named_parameters()):
        if not value.is_floating_point() or hasattr(value, "quant_state"):
            quantised = True
        elif value.dim() < 2 or "embed" in key or "wte" in key or "wpe" in key:
            embeddings.append((key, value))
        else:
            rest.append((key, value))
    head = head_weight(model)
    return BaseFingerprint(
        name=_location(name, lm),
        revision=revision or getattr(lm.config, "_commit_hash", None),
        architecture=type(lm).__name__,
        width=int(text.hidden_size),
        vocabulary=int(head.shape[0]) if head.is_floating_point() else int(text.vocab_size),
        tokenizer=_hash_tokenizer(tokenizer),
        weights=_hash_parameters(embeddings),
        layers=None if quantised else _hash_parameters(rest),
        adapter=adapter,
    )


def _location(name: str, model: PreTrainedModel) -> str:
    """Where the base can be found again: a hub id, or a folder's absolute path. Never `package.module:attribute`."""
    found = name if name and not is_attribute(name) else str(getattr(model.config, "_name_or_path", ""))
    path = Path(found).expanduser()
    return str(path.absolute()) if found and path.is_dir() else found


def check_base(expected: dict[str, Any], actual: BaseFingerprint, what: str) -> None:
    """Raise an error that says what differs if `what` (an artefact's folder) was made for another base."""
    differences = BaseFingerprint(**expected).differences(actual)
    if differences:
        made_for = expected.get("name") or "another base"
        raise FrugalignError(
            f"{what} was trained on {made_for}, not on {actual.name or 'this model'}: they differ in {'; '.join(differences)}."
        )


def _hash_tokenizer(tokenizer: PreTrainedTokenizerBase) -> str:
    digest = hashlib.sha256()
    for token, index in sorted(tokenizer.get_vocab().items(), key=lambda item: item[1]):
        digest.update(f"{index}\t{token}\n".encode())
    return digest.hexdigest()[:16]


def _hash_parameters(parameters: Sequence[tuple[str, Tensor]]) -> str:
    digest = hashlib.sha256()
    for key, value in parameters:
        digest.update(f"{key}{tuple(value.shape)}".encode())
        flat = value.detach().reshape(-1)
        stride = max(1, flat.numel() // _SAMPLE)
        digest.update(flat[::stride][:_SAMPLE].to(torch.bfloat16).cpu().view(torch.int16).numpy().tobytes())
    return digest.hexdigest()[:16]
