"""Our artefacts, a proxy or probes: `config.json` and `model.safetensors` under one hash.

The hash covers the weights and the whole config, except for where the base lies. Reading checks both files before a
network is built. Nothing that a file names is imported, and a field that we do not know has no effect.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import NoneType
from typing import Any, ClassVar, get_origin, get_type_hints

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedModel

from frugalign.base.errors import FrugalignError, saved_by_another_version
from frugalign.base.files import MODEL_CONFIG_FILE, STAGING_FOLDER, WEIGHTS_FILE, check_safetensors
from frugalign.base.parsing import parse_json
from frugalign.base.specs import is_model_path, local_hint, local_path
from frugalign.engines.fingerprints import BaseFingerprint
from frugalign.options.check import check_value
from frugalign.options.hints import describe, list_item, members
from frugalign.options.kinds import Kind

_HASH = "sha256"
_PATHS = ("name", "adapter")
_WHERE = (*_PATHS, "revision", "relative")
"""Fields of `base` that say where it lies. Its fingerprint, which is hashed, says what it is."""
_LARGEST = 1 << 31
_LONGEST = 10_000


@dataclass(frozen=True)
class ArtefactKind:
    """A kind of artefact.

    `what`: its name in messages. `config_class`: its own annotations are the fields. `model_class`: built from the
    config. `kinds`, `words`: what a field allows beyond its type.
    """

    what: str
    config_class: Any
    model_class: Any
    kinds: Mapping[str, Kind] = field(default_factory=dict)
    words: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.model_class.kind = self

    def hints(self) -> dict[str, Any]:
        """The type of every field, without the hash."""
        names = self.config_class.__annotations__
        own = type(self.what, (), {"__annotations__": names, "__module__": self.config_class.__module__})
        return {name: hint for name, hint in get_type_hints(own).items() if name != _HASH}


class SealedModel(PreTrainedModel):
    """A network that transformers loads and saves as one of our artefacts. `kind` is set by the `ArtefactKind` that names the class."""

    kind: ClassVar[ArtefactKind]

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """As in transformers, but a file that was changed after it was saved is refused."""
        check_artefact(cls.kind, args[0] if args else kwargs["pretrained_model_name_or_path"], kwargs)
        return super().from_pretrained(*args, **kwargs)

    def save_pretrained(self, *args: Any, **kwargs: Any) -> None:
        """As in transformers. A hash of weights and config goes into `config.json`, so that loading detects a change."""
        seal(self.kind, self, args[0] if args else kwargs["save_directory"])
        super().save_pretrained(*args, **kwargs)


def seal(kind: ArtefactKind, model: Any, folder: str | Path) -> None:
    """Put the hash into the model's config, and the way from `folder` to a local base and adapter. Called before saving."""
    config = model.config
    if config.base is not None:
        local = {key: str(config.base.get(key) or "") for key in _PATHS}
        final = Path(*(part for part in Path(folder).parts if part != STAGING_FOLDER))
        near = {key: os.path.relpath(path, final) for key, path in local.items() if os.path.isabs(path)}
        config.base = dict(config.base) | {"relative": near}
    config.sha256 = content_hash(kind, model)


def content_hash(kind: ArtefactKind, model: Any) -> str:
    """SHA-256 over the config's fields and the names, shapes and float32 values of the weights."""
    values = {name: _canonical(getattr(model.config, name, None), hint) for name, hint in kind.hints().items()}
    if values["base"] is not None:
        values["base"] = {key: value for key, value in values["base"].items() if key not in _WHERE}
    digest = hashlib.sha256(json.dumps(values, sort_keys=True, default=list).encode())
    for name, value in sorted(model.state_dict().items()):
        digest.update(f"{name}{tuple(value.shape)}".encode())
        digest.update(value.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _canonical(value: Any, hint: Any) -> Any:
    """The value as it is read back from JSON: a whole number in a float's place is a float, a tuple is a list."""
    if float in members(hint) and type(value) is int and abs(value) < _LARGEST:
        return float(value)
    return list(value) if isinstance(value, tuple) else value


def check_artefact(kind: ArtefactKind, name: str | Path, given: Mapping[str, Any]) -> None:
    """Check an artefact that transformers is about to load.

    Args:
        given: the keyword arguments of `from_pretrained`.

    Raises:
        FrugalignError: as `load_artefact`.
    """
    hub = ("revision", "token", "cache_dir", "local_files_only", "force_download")
    load_artefact(kind, name, **{name: given[name] for name in hub if given.get(name) is not None})


def load_artefact(kind: ArtefactKind, name: str | Path, **download: Any) -> Any:
    """The artefact's network in float32, its `config.base["name"]` a folder that exists where there is one.

    Args:
        name: a folder or a hub id.
        download: for the hub, such as `revision` and `token`.

    Raises:
        FrugalignError: a file is missing, damaged or of another kind, another version saved it, or anything was changed after
            saving.
    """
    folder = local_copy(name, kind.what, **download)
    values, stored_hash = _read_config(kind, folder)
    check_safetensors(folder / WEIGHTS_FILE)
    try:
        weights = load_file(folder / WEIGHTS_FILE)
    except (OSError, SafetensorError, ValueError, KeyError, RuntimeError) as error:
        raise FrugalignError(f"Cannot load the {kind.what} in {folder}: {_short(error)}") from error
    model = _build(kind, values, weights, folder)
    if stored_hash != content_hash(kind, model):
        raise FrugalignError(
            f"The {kind.what} in {folder} has been changed since it was saved: "
            f"its weights and settings do not have the hash in {MODEL_CONFIG_FILE}."
        )
    model.config.base = _found_again(model.config.base, folder)
    return model.eval()


def _found_again(base: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The base with paths that exist: where a folder is gone, one at the same way from the artefact takes its place."""
    found = dict(base)
    for key, way in base["relative"].items():
        near = os.path.normpath(folder.absolute() / way)
        gone = key in _PATHS and os.path.isabs(str(base.get(key))) and not is_model_path(str(base[key]))
        if gone and is_model_path(near):
            found[key] = near
    return found


def local_copy(name: str | Path, what: str, **download: Any) -> Path:
    """The artefact's folder: a local one, or its files from the hub in the cache.

    Raises:
        FrugalignError: there is none.
    """
    path = local_path(str(name))
    if path is None:
        from huggingface_hub import snapshot_download

        try:
            files = [MODEL_CONFIG_FILE, WEIGHTS_FILE]
            path = Path(snapshot_download(str(name), allow_patterns=files, **download))
        except (OSError, ValueError, RuntimeError) as error:
            raise FrugalignError(f"Cannot load the {what} {name!r} from the hub: {_short(error)}") from error
    if not os.path.isfile(path / MODEL_CONFIG_FILE):
        raise FrugalignError(f"No {what} in {name}: the folder has no {MODEL_CONFIG_FILE}{local_hint(str(name))}.")
    return path


def _read_config(kind: ArtefactKind, folder: Path) -> tuple[dict[str, Any], str]:
    """The fields in config.json, checked, and the stored hash."""
    path = folder / MODEL_CONFIG_FILE
    try:
        content = parse_json(path.read_bytes())
    except (OSError, ValueError) as error:
        raise FrugalignError(f"{path} is damaged: it is not valid JSON ({_short(error)}).") from error
    if not isinstance(content, dict) or content.get("model_type") != kind.config_class.model_type:
        raise FrugalignError(f"{folder} is not a frugalign {kind.what}, by its {MODEL_CONFIG_FILE}.")
    what, hints = f"The {kind.what} in {folder}", kind.hints()
    values = {name: _canonical(content[name], hint) for name, hint in hints.items() if name in content}
    if lacking := [name for name in [*hints, _HASH] if name not in content]:
        raise saved_by_another_version(what, lacking[0])
    for name, value in values.items():
        if problem := _problem(value, hints[name]):
            raise FrugalignError(f"{path} is damaged: {name} must be {problem}.")
        if value is not None:
            check_value(f"In {path}, {name}", value, kind.kinds.get(name), kind.words.get(name))
    if not isinstance(values["base"], dict) or not isinstance(values["base"].get("name"), str):
        raise FrugalignError(f"{folder} is not a complete {kind.what}: its {MODEL_CONFIG_FILE} names no base.")
    BaseFingerprint.read(values["base"], what)
    if "relative" not in values["base"]:
        raise saved_by_another_version(what, "relative paths")
    way = values["base"]["relative"]
    if not isinstance(way, dict) or not all(isinstance(each, str) for each in way.values()):
        raise FrugalignError(f"{path} is damaged: the relative paths of its base must be text.")
    return values, str(content[_HASH])


def _problem(value: Any, hint: Any) -> str | None:
    """What a value must be instead, in words; None if it has the type, is finite, and is not absurdly large."""
    item = list_item(hint)
    if item is not None:
        fits = isinstance(value, list) and len(value) < _LONGEST and all(_problem(each, item) is None for each in value)
        return None if fits else "a list of whole numbers"
    types = tuple(get_origin(member) or member for member in members(hint))
    if value is None or isinstance(value, bool):
        return None if (NoneType if value is None else bool) in types else describe(hint)
    if not isinstance(value, types):
        return describe(hint)
    if isinstance(value, int) and abs(value) >= _LARGEST:
        return "smaller"
    return "finite" if isinstance(value, float) and not math.isfinite(value) else None


def _build(kind: ArtefactKind, values: dict[str, Any], weights: Mapping[str, Tensor], folder: Path) -> Any:
    """The network of this config around these weights. No memory is taken for a network that does not fit them."""
    try:
        with torch.device("meta"):
            model = kind.model_class(kind.config_class(**values))
    except (ValueError, TypeError, RuntimeError, OverflowError, IndexError) as error:
        raise FrugalignError(f"The {MODEL_CONFIG_FILE} in {folder} is damaged: {_short(error)}") from error
    wanted = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    found = {name: tuple(value.shape) for name, value in weights.items()}
    for name in sorted({*wanted, *found}):
        if wanted.get(name) != found.get(name):
            shapes = (f"{name} is {_shape(found.get(name))}", f"should be {_shape(wanted.get(name))}")
            raise FrugalignError(f"The weights in {folder} do not fit its {MODEL_CONFIG_FILE}: {' and '.join(shapes)}.")
        if not weights[name].is_floating_point() or not bool(weights[name].float().isfinite().all()):
            raise FrugalignError(
                f"The weights in {folder} are damaged: {name} holds values that are not finite numbers."
            )
    model.load_state_dict({name: value.float() for name, value in weights.items()}, assign=True)
    return model


def _shape(shape: tuple[int, ...] | None) -> str:
    return "missing" if shape is None else " × ".join(map(str, shape)) or "a number"


def _short(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 300 else text[:300] + "…"
