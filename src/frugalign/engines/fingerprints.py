"""Fingerprints of a base model: what an artefact stores about its base, and the error if another base is given.

All weights are hashed, on several threads. Values are rounded to bfloat16 first, so the same base has the same
fingerprint in float32 and bfloat16. Where both sides hold more than bfloat16, the exact values are compared as well.
Quantised weights are compared with quantised ones, as they are stored. Where only one side is quantised, a warning says
that its layers are not compared. Config, tokenizer, chat template and end tokens are compared by `base_settings`.

Where hashes differ, `precision` tells from a sample of the weights whether it is the same model rounded otherwise, such as
one read from a GGUF file. That is accepted with a warning.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, get_type_hints

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.pytorch_utils import Conv1D

from frugalign.base.errors import FrugalignError, saved_by_another_version
from frugalign.base.json_types import mismatch
from frugalign.base.specs import is_attribute, is_model_path
from frugalign.engines.base_settings import (
    adapter_values,
    config_values,
    different_keys,
    different_parts,
    tokenizer_values,
    with_pipeline_of,
)
from frugalign.engines.precision import rounded_by, sample_weights
from frugalign.engines.sharding import Share, at_hand, class_of, gathered, is_shard
from frugalign.engines.transformers import causal_lm, head_weight

_CHUNK = 1 << 22
"""Weights that are rounded and hashed at once, which bounds the memory of a copy."""
_THREADS = min(8, os.cpu_count() or 1)
_NARROW = (torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2)
_log = logging.getLogger(__name__)


_WHERE = ("name", "revision", "adapter")
_WORDS = {
    "architecture": "architecture",
    "width": "hidden width",
    "vocabulary": "vocabulary size",
    "weights": "weights of embeddings and norms",
    "layers": "weights of the layers",
    "quantised": "quantised weights of the layers",
}


@dataclass(frozen=True)
class BaseFingerprint:
    """What identifies a frozen base. All fields except name and revision must match for an artefact to load.

    `weights`: of embeddings and norms; `layers`: of the rest, None if it is quantised. Both are hashes of values in bfloat16.
    `quantised`: a hash of quantised layers as stored, else None. `exact`: dtype and hash of the values as loaded; None
    where that is bfloat16 or quantised. It is compared if both sides have the same dtype. `adapter`: the name of a PEFT
    adapter that is part of the base; its weights are in the hashes. `config`, `tokenizer`: see `base_settings`; the
    tokenizer is None if unknown. `sample`: see `precision`.
    """

    name: str
    revision: str | None
    architecture: str
    width: int
    vocabulary: int
    tokenizer: dict[str, str] | None
    weights: str
    layers: str | None
    adapter: str | None = None
    exact: str | None = None
    quantised: str | None = None
    config: dict[str, str] = field(default_factory=dict)
    sample: str | None = None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def read(cls, stored: Mapping[str, Any], what: str) -> BaseFingerprint:
        """The fingerprint that an artefact stores.

        Raises:
            FrugalignError: a field is missing, as another version leaves it out, or of another type.
        """
        hints = get_type_hints(cls).items()
        wrong = [name for name, hint in hints if mismatch(stored.get(name), hint) is not None]
        if lacking := [name for name in wrong if name not in stored]:
            raise saved_by_another_version(what, lacking[0])
        if wrong:
            raise FrugalignError(f"{what} does not say which base it belongs to: its {wrong[0]} is damaged.")
        known: dict[str, Any] = {field.name: stored.get(field.name) for field in fields(cls)}
        return cls(**known)

    @property
    def identity(self) -> dict[str, Any]:
        """The fields that identify the base regardless of its path and name. JSON-ready; `base_differences` compares two."""
        return {name: value for name, value in self.to_dict().items() if name not in _WHERE}

    def differences(self, other: BaseFingerprint) -> list[str]:
        """The differences in words. `self` is the base that an artefact was made for."""
        found = []
        for name, word in _WORDS.items():
            mine, theirs = getattr(self, name), getattr(other, name)
            if mine is None or theirs is None or mine == theirs:
                continue
            readable = name in ("architecture", "width", "vocabulary")
            found.append(f"{word} ({mine} there, {theirs} here)" if readable else word)
        found += [f"config {each}" for each in different_keys(self.config, other.config)]
        if self.tokenizer is not None and other.tokenizer is not None:
            found += different_parts(self.tokenizer, other.tokenizer)
        if not found and self._exact_in(other) and self.exact != other.exact:
            found.append("weights, by less than bfloat16 resolves")
        return found

    def other_precision(self, other: BaseFingerprint) -> str | None:
        """What to say if `other` is this model in another precision. None if it is another model.

        Text becomes the same tokens in both, apart from where words are split: what is read from a GGUF file splits otherwise.
        """
        # Of a model in bfloat16, float16 moves the smallest weights alone.
        moved = rounded_by(self.sample, other.sample, few=self._is_float16 != other._is_float16)
        if moved is None:
            return None
        tokenizer = with_pipeline_of(self.tokenizer, other.tokenizer)
        alike = replace(self, weights=other.weights, layers=other.layers, exact=other.exact, tokenizer=tokenizer)
        if alike.differences(other):
            return None
        share = f"{moved:.1%}" if moved >= 0.001 else "less than 0.1%"
        split = different_parts(self.tokenizer, other.tokenizer) if self.tokenizer and other.tokenizer else []
        return f"the weights are rounded otherwise, by {share} of their size" + "".join(
            f", and the {each} differs" for each in split
        )

    @property
    def _is_float16(self) -> bool:
        return self.exact is not None and "float16" in self.exact.split(":")[0].split("+")

    def leaves_out(self, other: BaseFingerprint) -> bool:
        """Whether the layers are quantised on one side only, and so cannot be compared."""
        return (self.layers is None) != (other.layers is None)

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
    values = list(_values(model, without_adapter))
    quantised = getattr(lm.config, "quantization_config", None) is not None or any(map(_is_quantised, values))
    embeddings = [each for each in values if _is_embedding(*each)]
    rest = [each for each in values if not _is_embedding(*each)]
    head = head_weight(model)
    found = _hash_parameters([*embeddings, *rest])
    dtypes = sorted({str(value.dtype).removeprefix("torch.") for _, value in values})
    layers = _joined(rounded for rounded, _ in found[len(embeddings) :])
    return BaseFingerprint(
        name=_location(name, lm),
        revision=revision or getattr(lm.config, "_commit_hash", None),
        architecture=class_of(lm).__name__,
        width=int(text.hidden_size),
        vocabulary=int(head.shape[0]) if head.is_floating_point() else int(text.vocab_size),
        tokenizer=None if tokenizer is None else tokenizer_values(tokenizer, getattr(lm, "generation_config", None)),
        weights=_joined(rounded for rounded, _ in found[: len(embeddings)]),
        layers=None if quantised else layers,
        quantised=layers if quantised else None,
        adapter=None if adapter is None else _absolute(adapter),
        exact=None
        if quantised or all(value.dtype in _NARROW for _, value in values)
        else f"{'+'.join(dtypes)}:{_joined(exact for _, exact in found)}",
        config=config_values(lm.config) | ({} if without_adapter else adapter_values(model)),
        sample=sample_weights(values, _by_column(lm)),
    )


def weights_hash(model: nn.Module) -> str:
    """A hash of every weight and buffer of a model, as they are."""
    values = sorted(_stored(model), key=lambda named: named[0])
    return _joined(rounded + exact for rounded, exact in _hash_parameters(values))


def _is_quantised(named: tuple[str, Tensor]) -> bool:
    return hasattr(named[1], "quant_state") or (isinstance(named[1], nn.Parameter) and not named[1].is_floating_point())


def _is_embedding(key: str, value: Tensor) -> bool:
    """Whether it is an embedding, a norm or a bias, which stay as they are where layers are quantised."""
    plain = value.is_floating_point() and not hasattr(value, "quant_state")
    return plain and (value.dim() < 2 or "embed" in key or "wte" in key or "wpe" in key)


def _stored(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """All parameters and the buffers that are saved with them. Some quantised weights are buffers. Tied weights come once."""
    seen: set[Tensor] = set()
    for path, module in model.named_modules():
        for name, value in module.named_parameters(recurse=False):
            if value not in seen:
                seen.add(value)
                yield f"{path}.{name}" if path else name, at_hand(module, name, value)
    for path, module in model.named_modules():
        for name, value in module.named_buffers(recurse=False):
            if name not in module._non_persistent_buffers_set:
                yield f"{path}.{name}" if path else name, at_hand(module, name, value)


def _by_column(model: nn.Module) -> set[str]:
    """Names of the matrices that are stored as `[in, out]`."""
    return {f"{path}.weight" for path, module in model.named_modules() if isinstance(module, Conv1D)}


def _values(model: PreTrainedModel, without_adapter: bool) -> list[tuple[str, Tensor]]:
    lm = causal_lm(model)
    if lm is model or not without_adapter:
        return sorted(_stored(model), key=lambda named: named[0])
    wrapper: Any = model
    added = (wrapper.base_model.prefix, ".modules_to_save.")
    found = [(key, value) for key, value in _stored(lm) if not any(part in key for part in added)]
    # The order is that of the base alone.
    names = ((key.replace(".base_layer.", ".").replace(".original_module.", "."), value) for key, value in found)
    return sorted(names, key=lambda named: named[0])


def _location(name: str, model: PreTrainedModel) -> str:
    """Where the base can be found again: a hub id, or the absolute path of a folder or GGUF file. Never `package.module:attribute`."""
    found = name if name and not is_attribute(name) else str(getattr(model.config, "_name_or_path", ""))
    return _absolute(found)


def _absolute(name: str) -> str:
    path = os.path.expanduser(name)
    return os.path.abspath(path) if name and is_model_path(path) else name


def check_base(expected: Mapping[str, Any], actual: BaseFingerprint, what: str) -> None:
    """Raise an error that says what differs if `what` (an artefact's folder) was made for another base, and warn if it was made
    for the same model in another precision."""
    stored = BaseFingerprint.read(expected, what)
    if stored.leaves_out(actual):
        _log.warning("%s: one of the two models is quantised, so the weights of the layers are not compared.", what)
    differences = stored.differences(actual)
    if not differences:
        return
    made_for, here = expected.get("name") or "another base", actual.name or "this model"
    note = stored.other_precision(actual)
    if note is None:
        raise FrugalignError(
            f"{what} was trained on {made_for}, not on {here}: they differ in {'; '.join(differences)}."
        )
    _log.warning(
        "%s was trained on %s, and %s is the same model in another precision: %s. What was measured there may differ here.",
        *(what, made_for, here, note),
    )


def base_differences(stored: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """The differences between two `identity` values, in words.

    Raises:
        FrugalignError: the stored one is damaged.
    """
    nowhere = {"name": "", "revision": None, "adapter": None}
    one, other = (BaseFingerprint.read(nowhere | dict(each), "The checkpoint") for each in (stored, now))
    return one.differences(other)


def _hash_parameters(parameters: Sequence[tuple[str, Tensor]]) -> list[tuple[bytes, bytes]]:
    """Per parameter: the hash of its values in bfloat16, and of its values as they are. hashlib and torch release the
    interpreter's lock, so threads share the work."""
    with ThreadPoolExecutor(_THREADS) as pool:
        if not any(is_shard(value) for _, value in parameters):
            return list(pool.map(_hash_parameter, parameters))
        mine: dict[int, Future[tuple[bytes, bytes]]] = {}
        share = Share.of_processes()
        for place, (key, value) in enumerate(parameters):  # gathered one at a time, by all processes in this order
            whole = gathered(value)
            if place in share:
                wait(mine.values())  # so that no more than one takes memory
                mine[place] = pool.submit(_hash_parameter, (key, whole))
        found = share.together({place: each.result() for place, each in mine.items()})
    return [found[place] for place in range(len(parameters))]


def _hash_parameter(parameter: tuple[str, Tensor]) -> tuple[bytes, bytes]:
    key, value = parameter
    rounded = hashlib.sha256(f"{key}{tuple(value.shape)}".encode())
    exact = rounded.copy()
    for part in value.detach().reshape(-1).split(_CHUNK):
        stored = part.cpu()
        as_is = stored.view(torch.uint8).numpy()
        if value.is_floating_point():
            rounded.update(stored.to(torch.bfloat16).view(torch.int16).numpy())
        else:
            rounded.update(as_is)
        if value.dtype not in _NARROW or not value.is_floating_point():
            exact.update(as_is)
    state = getattr(value, "quant_state", None)
    if state is not None:  # of bitsandbytes: the scales, without which the packed values say nothing
        for name, scale in sorted(state.as_dict(packed=True).items()):
            scales = scale.cpu().reshape(-1).view(torch.uint8).numpy().tobytes() if isinstance(scale, Tensor) else scale
            rounded.update(f"{name}:".encode() + (scales if isinstance(scales, bytes) else repr(scales).encode()))
    return rounded.digest(), exact.digest()


def _joined(digests: Iterable[bytes]) -> str:
    return hashlib.sha256(b"".join(digests)).hexdigest()[:16]
