"""Convert text and YAML values to the type of a dataclass field. Imports neither torch nor argparse."""

from __future__ import annotations

from contextlib import suppress
from enum import Enum
from typing import Any, Literal, get_args, get_origin

from frugalign.base.parsing import parse_json
from frugalign.base.wording import shown
from frugalign.options.hints import describe, members

_TRUE, _FALSE = {"true", "yes", "1", "on"}, {"false", "no", "0", "off"}
_NONE = {"none", "null"}


def from_text(text: str, hint: Any) -> Any:
    """A word of the command line as a value of type `hint`.

    Raises:
        ValueError: if it cannot be one.
    """
    alternatives = members(hint)
    if type(None) in alternatives and text.lower() in _NONE:
        return None
    # Every word is valid text, so text is tried late. A list is tried last.
    for member in sorted((m for m in alternatives if m is not type(None)), key=_eagerness):
        try:
            return _from_text(text, member)
        except ValueError:
            continue
    raise ValueError(f"{shown(text)} is not {describe(hint)}")


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
        value = parse_json(text, strict=True)
        if not isinstance(value, dict):
            raise ValueError(text)
        return value
    if origin is list:
        return [from_text(text, (get_args(member) or (str,))[0])]
    if isinstance(origin, type) and issubclass(origin, Enum):
        return origin(text)
    return text


def from_yaml(value: Any, hint: Any) -> Any:
    """A YAML value as a value of type `hint`. `1e-3`, which YAML reads as text, becomes a number. A single item may stand for a list.

    Raises:
        ValueError: if it cannot be one.
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
        if origin is str and isinstance(value, bool):  # `resume_from_checkpoint: true` is text for its field
            return str(value).lower()
        if origin is int and (type(value) is int or (type(value) is float and value.is_integer())):
            return int(value)
        if origin is float and isinstance(value, (int, float)) and not isinstance(value, bool):
            with suppress(OverflowError):  # an integer of hundreds of digits
                return float(value)
    raise ValueError(f"{shown(value)} is not {describe(hint)}")
