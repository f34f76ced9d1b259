"""Every method, found by the `entry.py` of its folder.

To add a method, add a folder with an `entry.py` that defines `ENTRIES: tuple[Method, ...]`, and its name in `FOLDERS`.
A method outside the library is named as `package.module:attribute` of a `Method`. Importing this module imports no torch.
"""

from __future__ import annotations

from dataclasses import fields
from importlib import import_module

from frugalign.base.errors import FrugalignError
from frugalign.base.specs import is_attribute, load_attribute
from frugalign.methods.method import Method

FOLDERS = (
    "untrained",
    "proxy_rlhf",
    "proxy_stored",
    "representation_reward",
    "rerank",
    "psle",
    "steering",
    "peers",
)
"""In the order of `frugalign --help`."""
METHODS: dict[str, Method] = {
    entry.name: entry for folder in FOLDERS for entry in import_module(f"frugalign.methods.{folder}.entry").ENTRIES
}


def names() -> list[str]:
    """The methods that a study can have a line for."""
    return [method.name for method in METHODS.values() if method.run is not None]


def get(name: str) -> Method:
    """The method with this name, or the one at `package.module:attribute`.

    Raises:
        FrugalignError: an unknown name.
    """
    if name in METHODS:
        return METHODS[name]
    if is_attribute(name):
        found = load_attribute(name)
        if isinstance(found, Method):
            return found
        raise FrugalignError(f"{name} is a {type(found).__name__}, not a Method.")
    raise FrugalignError(f"There is no method {name!r}; there are {', '.join(names())}.")


def option_names(method: Method) -> set[str]:
    """All options that a study's line may set. Imports the method's config, and with it possibly torch."""
    config = () if method.config is None else fields(load_attribute(method.config))
    return {*method.options, *(each.name for each in config)}


def observed_by(option: str) -> list[str]:
    """The methods whose training this option observes."""
    return [method.name for method in METHODS.values() if option in method.observers]
