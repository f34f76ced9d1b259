"""Fingerprints of a base model: what an artefact stores about its base, and the error if another base is given.

All weights are hashed, on several threads. Values are rounded to bfloat16 first, so the same base has the same
fingerprint in float32 and bfloat16. Where both sides hold more than bfloat16, the exact values are compared as well.
In 4-bit, only the parts that are not quantised are compared.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from frugalign.base.errors import FrugalignError
from frugalign.base.specs import is_attribute
from frugalign.engines.transformers import causal_lm, head_weight

_CHUNK = 1 << 22
"""Weights that are rounded and hashed at once, which bounds the memory of a copy."""
_THREADS = min(8, os.cpu_count() or 1)
_NARROW = (torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2)


@dataclass(frozen=True)
class BaseFingerprint:
    """What identifies a frozen base. All fields except name and revision must match for an artefact to load.

    `weights`: of embeddings and norms; `layers`: of the rest, None in 4-bit. Both are hashes of values in bfloat16.
    `exact`: dtype and hash of the values as loaded; None where that is bfloat16 or 4-bit. It is compared if both sides
    have the same dtype. `adapter`: the name of a PEFT adapter that is part of the base; its weights are in the hashes.
    """

    name: str
    revision: str | None
    architecture: str
    width: int
    vocabulary: int
    tokenizer: str | None
    weights: str
    layers: str | None
    adapter: str | None = None
    exact: str | None = None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def read(cls, stored: Mapping[str, Any], what: str) -> BaseFingerprint:
        """The fingerprint that an artefact stores.

        Raises:
            FrugalignError: a field is missing or of another type.
        """
        optional = ("revision", "tokenizer", "layers", "adapter", "exact")
        for field in fields(cls):
            value, needed = stored.get(field.name), int if field.name in ("width", "vocabulary") else str
            if not isinstance(value, needed) and not (value is None and field.name in optional):
                raise FrugalignError(f"{what} does not say which base it belongs to: its {field.name} is damaged.")
        known: dict[str, Any] = {field.name: stored.get(field.name) for field in fields(cls)}
        return cls(**known)

    @property
    def identity(self) -> dict[str, Any]:
        """The fields that identify the base regardless of its path and name."""
        return {name: getattr(self, name) for name in ("architecture", "tokenizer", "weights", "layers", "exact")}

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
        if not found and self._exact_in(other) and self.exact != other.exact:
            found.append("weights, by less than bfloat16 resolves")
        return found

    def _exact_in(self, other: BaseFingerprint) -> bool:
        """Whether both know their exact weights in the same dtype."""
        if self.exact is None or other.exact is None:
            return False
        return self.exact.split(":")[0] == other.exact.split(":")[0]


def fingerprint(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    *,
    name: str = "",
    revision: str | None = None,
    adapter: str | None = None,
    without_adapter: bool = False,
) -> BaseFingerprint:
    """Fingerprint a loaded base. Reads every weight, about a second per billion bytes and thread.

    Args:
        tokenizer: None if unknown. It is not compared then.
        name: where the base was loaded from. `package.module:attribute` is replaced by the folder that it stood for.
        without_adapter: leave out the weights that a PEFT wrapper added, to identify the model below it.
    """
    lm = causal_lm(model)
    text = lm.config.get_text_config()
    embeddings, rest, quantised = [], [], False
    for key, value in sorted(_parameters(model, without_adapter)):
        if not value.is_floating_point() or hasattr(value, "quant_state"):
            quantised = True
        elif value.dim() < 2 or "embed" in key or "wte" in key or "wpe" in key:
            embeddings.append((key, value))
        else:
            rest.append((key, value))
    head = head_weight(model)
    found = _hash_parameters([*embeddings, *rest])
    dtypes = sorted({str(value.dtype).removeprefix("torch.") for _, value in (*embeddings, *rest)})
    return BaseFingerprint(
        name=_location(name, lm),
        revision=revision or getattr(lm.config, "_commit_hash", None),
        architecture=type(lm).__name__,
        width=int(text.hidden_size),
        vocabulary=int(head.shape[0]) if head.is_floating_point() else int(text.vocab_size),
        tokenizer=None if tokenizer is None else _hash_tokenizer(tokenizer),
        weights=_joined(rounded for rounded, _ in found[: len(embeddings)]),
        layers=None if quantised else _joined(rounded for rounded, _ in found[len(embeddings) :]),
        adapter=None if adapter is None else _absolute(adapter),
        exact=None
        if quantised or all(value.dtype in _NARROW for _, value in (*embeddings, *rest))
        else f"{'+'.join(dtypes)}:{_joined(exact for _, exact in found)}",
    )


def _parameters(model: PreTrainedModel, without_adapter: bool) -> Iterable[tuple[str, Tensor]]:
    lm = causal_lm(model)
    if lm is model or not without_adapter:
        yield from model.named_parameters()
        return
    wrapper: Any = model
    added = (wrapper.base_model.prefix, ".modules_to_save.")
    for key, value in lm.named_parameters():
        if not any(part in key for part in added):
            yield key.replace(".base_layer.", ".").replace(".original_module.", "."), value


def _location(name: str, model: PreTrainedModel) -> str:
    """Where the base can be found again: a hub id, or a folder's absolute path. Never `package.module:attribute`."""
    found = name if name and not is_attribute(name) else str(getattr(model.config, "_name_or_path", ""))
    return _absolute(found)


def _absolute(name: str) -> str:
    path = os.path.expanduser(name)
    return os.path.abspath(path) if name and os.path.isdir(path) else name


def check_base(expected: Mapping[str, Any], actual: BaseFingerprint, what: str) -> None:
    """Raise an error that says what differs if `what` (an artefact's folder) was made for another base."""
    differences = BaseFingerprint.read(expected, what).differences(actual)
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


def _hash_parameters(parameters: Sequence[tuple[str, Tensor]]) -> list[tuple[bytes, bytes]]:
    """Per parameter: the hash of its values in bfloat16, and of its values as they are. hashlib and torch release the
    interpreter's lock, so threads share the work."""
    with ThreadPoolExecutor(_THREADS) as pool:
        return list(pool.map(_hash_parameter, parameters))


def _hash_parameter(parameter: tuple[str, Tensor]) -> tuple[bytes, bytes]:
    key, value = parameter
    rounded = hashlib.sha256(f"{key}{tuple(value.shape)}".encode())
    exact = rounded.copy()
    for part in value.detach().reshape(-1).split(_CHUNK):
        stored = part.cpu()
        rounded.update(stored.to(torch.bfloat16).view(torch.int16).numpy())
        if value.dtype not in _NARROW:
            exact.update(stored.view(torch.uint8).numpy())
    return rounded.digest(), exact.digest()


def _joined(digests: Iterable[bytes]) -> str:
    return hashlib.sha256(b"".join(digests)).hexdigest()[:16]
