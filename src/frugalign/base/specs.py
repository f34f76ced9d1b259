"""References to Python objects: `package.module:attribute`, the one syntax for rewards, models and data."""

from __future__ import annotations

import importlib
import importlib.util
import os
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from frugalign.base.errors import FrugalignError

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", re.ASCII)
_WEIGHTS = (".safetensors", ".bin", ".gguf")
_FILES = (".json", ".jsonl", ".csv", ".parquet", ".gz", ".yaml", ".yml", ".txt", ".md", ".py", *_WEIGHTS)
_LONGEST = 255
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*(::[A-Za-z].*)?://")
_SPEC = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


def is_url(name: str) -> bool:
    """Whether a name is a URL such as `s3://bucket/folder`, or a chain of them such as `zip::s3://…`."""
    return _URL.match(name) is not None


def is_attribute(spec: str) -> bool:
    """Whether `spec` has the form `package.module:attribute` and is not an existing path."""
    return _SPEC.fullmatch(spec) is not None and not os.path.exists(spec)


def local_path(name: str) -> Path | None:
    """The path that a name stands for, whether or not it exists. None for a hub id, `model` or `owner/model`.

    A name in a folder that exists here is a path, and so is a name that differs from that of a folder here by a typo. So
    a misspelt path is never looked up on the hub.
    """
    expanded = os.path.expanduser(name)
    here = name.split("/")[0] if "/" in name else ""
    if os.path.exists(expanded) or not _HUB_ID.fullmatch(name) or (here and os.path.isdir(here)):
        return Path(expanded)
    return Path(expanded) if name.lower().endswith(_FILES) or _close_names(name) else None


def is_gguf(path: str | Path) -> bool:
    """Whether a path is called as a GGUF file is."""
    return str(path).lower().endswith(".gguf")


def is_model_path(path: str | Path) -> bool:
    """Whether a folder or a GGUF file, which may be a model, lies there."""
    return os.path.isdir(path) or (is_gguf(path) and os.path.isfile(path))


def local_hint(name: str) -> str:
    """`; did you mean runs/chat-3m?` after a path that does not exist, or nothing."""
    found = _close_names(name)
    if not found:
        return ""
    hub = "" if "/" in name else f" The hub's {name} needs its owner: OWNER/{name}."
    return f"; did you mean {' or '.join(found[:3])}?{hub}".removesuffix(".")


def _close_names(name: str) -> list[str]:
    """Folders whose path differs from `name` by a typo; files too, if `name` is in a folder or has a suffix."""
    folder, _, last = name.rpartition("/")
    if not last or len(name) > _LONGEST or "\0" in name:
        return []
    if folder and not os.path.isdir(os.path.expanduser(folder)):
        near = [each for each in _close_names(folder) if "/" not in folder]
        return [f"{each}/{last}" for each in near if os.path.exists(os.path.join(each, last))]
    files = bool(folder) or "." in last
    try:
        with os.scandir(os.path.expanduser(folder) or ".") as entries:
            names = [each.name for each in entries if (files or each.is_dir()) and _is_typo(last, each.name)]
    except OSError:
        return []
    return sorted(f"{folder}/{each}" if folder else each for each in names)


def _is_typo(given: str, name: str) -> bool:
    """Whether one edit makes one name of the other: a character replaced, left out, put in, or two exchanged. Case aside.

    The names have at least four characters, since shorter ones are easily alike.
    """
    one, other = sorted((given.lower(), name.lower()), key=len)
    if len(one) < 4 or len(other) - len(one) > 1 or given == name:
        return False
    start = next((place for place, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), len(one))
    rest, more = one[start:], other[start:]
    if len(one) < len(other):
        return rest == more[1:]
    return rest[1:] == more[1:] or (rest[:2] == more[:2][::-1] and rest[2:] == more[2:])


def names_code(text: str) -> bool:
    """Whether a reward, a model or data under this name would be imported: `[name=]module:attribute` or `file.py:attribute`."""
    spec = re.sub(r"^[A-Za-z_][\w.-]*=", "", text)
    return is_attribute(spec) or re.fullmatch(r".+\.py:\w+", spec, re.DOTALL) is not None


def load_attribute(spec: str) -> Any:
    """The attribute that `package.module:attribute` names.

    Raises:
        FrugalignError: the module cannot be imported or lacks the attribute.
    """
    module_name, attribute = spec.split(":")
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # importing runs the user's code, which can fail in any way
        raise FrugalignError(f"Cannot import {module_name!r} for {spec!r}: {type(error).__name__}: {error}.") from error
    try:
        return getattr(module, attribute)
    except AttributeError as error:
        raise FrugalignError(f"The module {module_name!r} has no {attribute!r} (named by {spec!r}).") from error


def module_file(module_name: str) -> Path | None:
    """The source file of a module, or None. Its parent packages are imported, the module itself is not."""
    try:
        spec = importlib.util.find_spec(module_name)
    except (ImportError, ValueError):
        return None
    return Path(spec.origin) if spec is not None and spec.origin and Path(spec.origin).is_file() else None


def resolve_name(name: str) -> str:
    """Resolve a name to a path or hub id. `package.module:attribute` is looked up, and called if it is a function.
    Any other name is returned as it is.

    Raises:
        FrugalignError: it names something else, such as a reward.
    """
    if not is_attribute(name):
        return name
    found = load_attribute(name)
    if callable(found):
        try:
            found = found()
        except Exception as error:  # the user's code, or a function that does not return a path
            raise FrugalignError(f"{name!r} cannot be called for a path: {type(error).__name__}: {error}.") from error
    if not isinstance(found, (str, Path)):
        raise FrugalignError(f"{name!r} is a {type(found).__name__}, not a path or a hub id.")
    return str(found)


def lazy_exports(package: str, home: Mapping[str, str]) -> Callable[[str], Any]:
    """A package's `__getattr__` (PEP 562) that imports a public name's module on first use.

    This keeps importing the package fast: torch and transformers take seconds. `home` maps a name to its module.
    """

    def fetch(name: str) -> Any:
        if name not in home:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(importlib.import_module(f"{package}.{home[name]}"), name)
        setattr(sys.modules[package], name, value)
        return value

    return fetch
