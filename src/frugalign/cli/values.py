"""Text and YAML values to the type of a dataclass field. No torch, no argparse."""

from __future__ import annotations

import json
import math
import types
from enum import Enum
from typing import Any, Literal, Union, get_args, get_origin

_TRUE, _FALSE = {"true", "yes", "1", "on"}, {"false", "no", "0", "off"}
_NONE = {"none", "null"}


def members(hint: Any) -> tuple[Any, ...]:
    """The alternatives of a union, None among them as `NoneType`; any other type alone."""
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def scalar(hint: Any) -> Any:
    """The type without its None; the first that is not a list or a dict where several are left."""
    left = [member for member in members(hint) if member is not type(None)]
    plain = [member for member in left if (get_origin(member) or member) not in (list, dict, tuple)]
    return (plain or left)[0] if left else str


def list_item(hint: Any) -> Any | None:
    """The item type of a list (or of a union with one), None where the type has no list."""
    for member in members(hint):
        if (get_origin(member) or member) is list:
            return (get_args(member) or (str,))[0]
    return None


def choices(hint: Any) -> tuple[Any, ...] | None:
    """The values that a Literal or an enumeration allows; None for other types."""
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
    """The type in words, for a sentence."""
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


def from_text(text: str, hint: Any) -> Any:
    """A word of the command line as a value of type `hint`.

    Raises:
        ValueError: where it is none.
    """
    alternatives = members(hint)
    if type(None) in alternatives and text.lower() in _NONE:
        return None
    # Text fits everything, so it comes late; one word is a list only where it can be nothing else.
    for member in sorted((m for m in alternatives if m is not type(None)), key=_eagerness):
        try:
            return _from_text(text, member)
        except ValueError:
            continue
    raise ValueError(f"{text!r} is not {describe(hint)}")


def _eagerness(member: Any) -> int:
    return 2 if (get_origin(member) or member) is list else int(member in (str, Any))


def _from_text(text: str, member: Any) -> Any:
    origin = get_origin(member) or member
    if origin is Literal:
        for value in get_args(member):
            if str(value) == text:
                return value
        raise ValueError(text)
    if origin is bool:
        if text.lower() in _TRUE | _FALSE:
            return text.lower() in _TRUE
        raise ValueError(text)
    if origin is int:
        return int(text)
    if origin is float:
        return float(text)
    if origin is dict:
        value = json.loads(text)  # JSONDecodeError is a ValueError
        if not isinstance(value, dict):
            raise ValueError(text)
        return value
    if origin is list:
        return [from_text(text, (get_args(member) or (str,))[0])]
    if isinstance(origin, type) and issubclass(origin, Enum):
        return origin(text)
    return text


def from_yaml(value: Any, hint: Any) -> Any:
    """A YAML value as one of type `hint`: numbers are checked, `1e-3` (text to YAML) is read as a number, one item
    may stand for a list.

    Raises:
        ValueError: where it is none.
    """
    alternatives = members(hint)
    if Any in alternatives or (value is None and type(None) in alternatives):
        return value
    if isinstance(value, str):
        return from_text(value, hint) if value.lower() not in _NONE or str in alternatives else None
    for member in alternatives:
        origin = get_origin(member) or member
        if origin is Literal and value in get_args(member) and type(value) in {type(item) for item in get_args(member)}:
            return value
        if origin is list and value is not None:
            items = value if isinstance(value, list) else [value]
            item_type = (get_args(member) or (Any,))[0]
            return [from_yaml(item, item_type) for item in items]
        if origin in (bool, dict) and isinstance(value, origin):
            return value
        if origin is str and isinstance(value, bool):  # `resume_from_checkpoint: true` is a word to its field
            return str(value).lower()
        if origin is int and type(value) in (int, float) and math.isfinite(value) and value == int(value):
            return int(value)
        if origin is float and isinstance(value, (int, float)) and not isinstance(value, bool):
            return float(value)
    raise ValueError(f"{value!r} is not {describe(hint)}")
