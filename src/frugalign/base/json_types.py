"""Whether a value read from JSON is of a declared type. The types are the TypedDicts of `frugalign.runs.layout` and the like."""

from __future__ import annotations

import types
from collections.abc import Mapping
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints, is_typeddict

_WORDS = {
    dict: "an object",
    list: "a list",
    str: "a text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
}

_LARGEST = 10**300


def mismatch(value: Any, kind: Any, place: str = "") -> str | None:
    """The first place where `value` is not of type `kind`, in words; None if it is.

    Args:
        kind: a TypedDict, `dict[str, T]`, `list[T]`, a union, a Literal, Any, None, or str, int, float, bool. A float may be a
            whole number. Keys that a TypedDict does not name are allowed.
        place: where `value` stands, for the message.
    """
    if kind is Any:
        return None
    origin, inner = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        found = [mismatch(value, each, place) for each in inner]
        return None if None in found else found[0]
    if origin is Literal:
        return None if value in inner else f"{place or 'it'} is {value!r}"
    if kind in (None, type(None)):
        return None if value is None else f"{place or 'it'} is not null"
    if is_typeddict(kind):
        return _typed_dict(value, kind, place)
    plain = origin or kind
    accepted: Any = (int, float) if plain is float else plain
    if not isinstance(value, accepted) or (isinstance(value, bool) and plain is not bool):
        return f"{place or 'it'} is not {_WORDS.get(plain, plain.__name__)}"
    content: Any = value
    if plain is float and isinstance(value, int) and abs(value) > _LARGEST:
        return f"{place or 'it'} is too large a number"
    if plain is dict and inner:
        return _first(mismatch(each, inner[1], _inside(place, name)) for name, each in content.items())
    if plain is list and inner:
        return _first(mismatch(each, inner[0], _inside(place, number)) for number, each in enumerate(content))
    return None


def _typed_dict(value: Any, kind: Any, place: str) -> str | None:
    if not isinstance(value, Mapping):
        return f"{place or 'it'} is not an object"
    missing = sorted(kind.__required_keys__ - value.keys())
    if missing:
        return f"{_inside(place, missing[0])} is missing"
    hints = get_type_hints(kind)
    return _first(mismatch(value[name], hints[name], _inside(place, name)) for name in hints if name in value)


def _inside(place: str, name: str | int) -> str:
    return f"{place}.{name}" if place else str(name)


def _first(problems: Any) -> str | None:
    return next((problem for problem in problems if problem is not None), None)
