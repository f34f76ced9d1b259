"""Load a reward from a string on the command line."""

from __future__ import annotations

import importlib.util
import os
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from frugalign.base.errors import FrugalignError
from frugalign.base.specs import is_attribute, load_attribute, local_hint, local_path

_NAMED = re.compile(r"(?P<name>[A-Za-z_][\w.-]*)=(?P<spec>.+)", re.DOTALL)
_FILE = re.compile(r"(?P<file>.+\.py):(?P<attribute>\w+)")


@dataclass(frozen=True)
class NamedReward:
    """A reward, the name it is reported under, and the string it was loaded from (empty for an object)."""

    name: str
    function: Callable[..., Any]
    spec: str = ""


RewardSpec = str | Callable[..., Any] | NamedReward


def load_rewards(rewards: RewardSpec | Sequence[RewardSpec], *, device: str = "cpu") -> list[NamedReward]:
    """Rewards from strings, functions, or a list of either.

    Raises:
        FrugalignError: no reward is given, two have the same name, or one is not a reward or cannot be loaded.
    """
    given: Sequence[Any] = rewards if isinstance(rewards, (list, tuple)) else [rewards]
    if not given:
        raise FrugalignError("No reward is given: --reward is missing.")
    named: list[NamedReward] = []
    for item in given:
        if isinstance(item, str):
            named.append(load_reward(item, device=device))
        elif isinstance(item, NamedReward):
            named.append(item)
        elif callable(item):
            named.append(NamedReward(getattr(item, "__name__", type(item).__name__), item))
        else:
            raise FrugalignError(f"A reward must be callable or a string, not {type(item).__name__}.")
        if named[-1].name in [other.name for other in named[:-1]]:
            raise FrugalignError(
                f"Two rewards are called {named[-1].name!r}; give one of them another name, as in name=SPEC."
            )
    return named


def load_reward(spec: str, *, device: str = "cpu") -> NamedReward:
    """The reward that a string names, `SPEC` or `name=SPEC`.

    `SPEC` is `package.module:attribute`, `file.py:attribute`, or a model (folder or hub id): a sequence classifier or a
    representation reward.
    An attribute that is a string or path names such a model. Models are moved to `device`.

    Raises:
        FrugalignError: the file, module or attribute is missing, the object is not callable, or the folder holds no
            usable model.
    """
    named = _NAMED.fullmatch(spec) if not os.path.exists(spec) else None
    name, what = (named["name"], named["spec"]) if named else (None, spec)
    if not what.strip():
        raise FrugalignError("A reward's name is empty.")
    file = _FILE.fullmatch(what)
    if file is None and not is_attribute(what):
        return NamedReward(name or Path(what).name, _classifier(what, device), spec)
    if file is not None:
        attribute = file["attribute"]
        found = _attribute_of_file(Path(file["file"]).expanduser(), attribute)
    else:
        attribute = what.rsplit(":", 1)[1]
        found = load_attribute(what)
    if isinstance(found, (str, Path)):
        return NamedReward(name or attribute, _classifier(str(found), device), spec)
    if isinstance(found, type):
        raise FrugalignError(f"The reward {what!r} is a class; name a function, or an instance of the class.")
    if not callable(found):
        raise FrugalignError(f"The reward {what!r} is a {type(found).__name__}, which cannot be called.")
    return NamedReward(name or attribute, found, spec)


def _classifier(name: str, device: str) -> Callable[..., Any]:
    if name.endswith(".py"):
        raise FrugalignError(f"The reward {name!r} needs the name of a function: {name}:FUNCTION.")
    path = local_path(name)
    if path is not None and not os.path.exists(path):
        raise FrugalignError(f"There is no reward at {name}{local_hint(name)}.")
    from frugalign.rewards.classifier import ClassifierReward
    from frugalign.rewards.representation.network import RepresentationReward, is_representation_reward

    found = name if path is None else str(path)
    reads_states = is_representation_reward(found)
    return (RepresentationReward if reads_states else ClassifierReward).from_pretrained(found, device=device)


def _attribute_of_file(path: Path, attribute: str) -> Any:
    if not path.is_file():
        raise FrugalignError(f"There is no reward file {path}.")
    module = module_of_file(path.resolve())
    if not hasattr(module, attribute):
        raise FrugalignError(f"The reward file {path} has no {attribute!r}.")
    return getattr(module, attribute)


def module_of_file(path: Path) -> ModuleType:
    """The module of a reward file, imported once, so that two rewards of a file share its state.

    Raises:
        FrugalignError: it cannot be imported.
    """
    name = f"frugalign_reward_{path.stem}_{abs(hash(str(path))):x}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None  # holds for every path that ends in .py
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickle look the module up there
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # the user's code can fail in any way
        del sys.modules[name]
        raise FrugalignError(f"The reward file {path} cannot be imported: {type(error).__name__}: {error}.") from error
    return module
