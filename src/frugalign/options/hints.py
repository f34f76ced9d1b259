"""Inspect the type hint of an option: unions, literals, lists and enumerations. No torch."""

from __future__ import annotations

import os
import types
from enum import Enum
from functools import reduce
from numbers import Integral, Real
from operator import or_
from typing import Any, Literal, Union, get_args, get_origin


def members(hint: Any) -> tuple[Any, ...]:
    """The members of a union, with None as `NoneType`. Any other type is its own only member."""
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def without_none(hint: Any) -> Any:
    """The type without None."""
    left = [member for member in members(hint) if member is not type(None)]
    return reduce(or_, left) if left else hint


def scalar(hint: Any) -> Any:
    """The type without None. If several remain, the first that is not a list, dict or tuple."""
    left = [member for member in members(hint) if member is not type(None)]
    plain = [member for member in left if (get_origin(member) or member) not in (list, dict, tuple)]
    return (plain or left)[0] if left else str


def list_item(hint: Any) -> Any | None:
    """The item type of a list, or of the list in a union. None without a list."""
    for member in members(hint):
        if (get_origin(member) or member) is list:
            return (get_args(member) or (str,))[0]
    return None


def choices(hint: Any) -> tuple[Any, ...] | None:
    """The values allowed by a Literal or an enumeration. None for other types."""
    found: list[Any] = []
    for member in members(hint):
        if get_origin(member) is Literal:
            found += get_args(member)
        elif isinstance(member, type) and issubclass(member, Enum):
            found += [item.value for item in member]
        elif member is not type(None):
            return None
    return tuple(found) or None


def describe(hint: Any) -> str:
    """The type in words, for an error message."""
    allowed = choices(hint)
    if allowed is not None:
        return "one of " + ", ".join(str(value) for value in allowed)
    words = {
        bool: "true or false",
        int: "a whole number",
        float: "a number",
        str: "text",
        dict: "a mapping",
        list: "a list",
    }
    names = [
        words.get(get_origin(member) or member, str(member)) for member in members(hint) if member is not type(None)
    ]
    return " or ".join(dict.fromkeys(names))


def fits(value: Any, hint: Any) -> bool:
    """Whether a value is of the type, without conversion. A whole number counts as a float too; True does not count as a number."""
    return any(_fits(value, member) for member in members(hint))


def _fits(value: Any, member: Any) -> bool:
    if member is Any:
        return True
    if member is type(None):
        return value is None
    origin = get_origin(member) or member
    if origin is Literal:
        return any(value == word and type(value) is type(word) for word in get_args(member))
    if origin in (int, float):
        return isinstance(value, Integral if origin is int else Real) and not isinstance(value, bool)
    if origin is list:
        item = (get_args(member) or (Any,))[0]
        return isinstance(value, (list, tuple)) and all(fits(each, item) for each in value)
    if origin is str:
        return isinstance(value, (str, os.PathLike))
    if isinstance(origin, type) and issubclass(origin, Enum):
        return isinstance(value, origin) or value in [each.value for each in origin]
    return isinstance(value, origin) if isinstance(origin, type) else True
