"""Declare an option once, in a group. A verb changes its default with `defaults` and extends its help with `notes`.

    @dataclass
    class Optimiser(Group, section="optimisation"):
        learning_rate: float = option(1e-4, "Peak learning rate.", NON_NEGATIVE)

    @dataclass
    @defaults(learning_rate=1e-2)
    @notes(learning_rate="A proxy takes a larger one than a LoRA.")
    class ProxyOptions(Optimiser): ...

`like` is for the rare option whose type differs too, such as one that may be None to use the artefact's value. No
torch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import MISSING, Field, field, fields
from functools import cache
from inspect import get_annotations
from typing import Any, ClassVar, TypeVar, get_type_hints

from frugalign.options.hints import without_none
from frugalign.options.kinds import Kind

Options = TypeVar("Options")
REQUIRED: Any = MISSING
"""The default of a required option."""


class Group:
    """Base class of an option group. `section`: the heading under which `--help` lists the group's options."""

    section: ClassVar[str] = ""

    def __init_subclass__(cls, *, section: str = "", **more: Any) -> None:
        super().__init_subclass__(**more)
        cls.section = section


def section_of(cls: type, item: Field[Any]) -> str:
    """The section of the group that declares an option of `cls`. Empty for an option of the class itself."""
    owners = [base for base in reversed(cls.__mro__) if item.name in get_annotations(base)]
    declared_in = next((base.section for base in owners if issubclass(base, Group)), "")
    return str(item.metadata.get("section", declared_in))


def option(default: Any, text: str, kind: Kind | None = None, *, positional: bool = False) -> Any:
    """A field of an options dataclass.

    Args:
        default: a list is copied for every instance; `REQUIRED` makes the option required.
        text: the help, as full sentences.
        kind: the rule for its value, or for every item of a list. The value None is always allowed.
        positional: whether it may be given without its flag, as RUN in `frugalign report RUN`.
    """
    return _field(default, {"help": text, "kind": kind} | ({"positional": True} if positional else {}))


def defaults(**values: Any) -> Callable[[type[Options]], type[Options]]:
    """A class decorator, placed below `@dataclass`: change the defaults of inherited options, or make them
    `REQUIRED`."""

    def decorate(cls: type[Options]) -> type[Options]:
        for name, value in values.items():
            hint, found = _inherited(cls, name)
            if value is REQUIRED:
                hint = without_none(hint)
            _redeclare(cls, name, hint, _field(value, found.metadata))
        return cls

    return decorate


def notes(**texts: str) -> Callable[[type[Options]], type[Options]]:
    """A class decorator, placed below `@dataclass`: append text to the help of inherited options."""

    def decorate(cls: type[Options]) -> type[Options]:
        for name, text in texts.items():
            hint, found = _inherited(cls, name)
            default = found.default if found.default_factory is MISSING else found.default_factory()
            _redeclare(cls, name, hint, _field(default, {**found.metadata, "help": f"{found.metadata['help']} {text}"}))
        return cls

    return decorate


def like(
    group: type, name: str, default: Any, note: str = "", kind: Kind | None = None, *, positional: bool = False
) -> Any:
    """A field with the help and kind of the option `name` in `group`, for a class where its type differs.

    `kind`: a stricter one than the group's.
    """
    metadata = {**{each.name: each for each in fields(group)}[name].metadata}
    metadata |= {"help": f"{metadata['help']} {note}"} if note else {}
    metadata |= {"kind": kind} if kind is not None else {}
    metadata |= {"section": getattr(group, "section", "")}
    return _field(default, metadata | ({"positional": True} if positional else {}))


def _field(default: Any, metadata: Any) -> Any:
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    # A required field may then follow inherited ones with defaults.
    return field(default=default, metadata=metadata, kw_only=default is REQUIRED)


def _inherited(cls: type, name: str) -> tuple[Any, Field[Any]]:
    """The type and the field of an inherited option. `cls` is not a dataclass yet.

    Raises:
        TypeError: `cls` inherits no option of that name.
    """
    own = cls.__dict__.get(name)
    if isinstance(own, Field):  # another decorator has redeclared it
        return cls.__annotations__[name], own
    for base in cls.__mro__[1:]:
        found = {each.name: each for each in fields(base)} if hasattr(base, "__dataclass_fields__") else {}
        if name in found:
            return _hints(base)[name], found[name]
    raise TypeError(f"{cls.__name__} inherits no option {name}")


@cache
def _hints(cls: type) -> dict[str, Any]:
    return get_type_hints(cls)


def _redeclare(cls: type, name: str, hint: Any, declared: Any) -> None:
    if "__annotations__" not in cls.__dict__:
        cls.__annotations__ = {}
    cls.__annotations__[name] = hint
    setattr(cls, name, declared)
