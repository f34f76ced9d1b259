"""Read a request: JSON of OpenAI's chat or text completions becomes an `Asked`, or one `RequestError` that names the field.

A field that this server cannot honour is refused unless it has its neutral value. So is an unknown one: a misspelt
`max_kl` must not be a missing one. Fields that only describe the caller are ignored.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from frugalign.base.wording import did_you_mean, shown
from frugalign.options.kinds import TEMPLATE_ARGUMENTS, TEXT
from frugalign.serving.errors import RequestError
from frugalign.serving.models import check_strength

MAX_STOPS = 4
MAX_STOP_LENGTH = 256
MAX_LOGPROBS = 20
MAX_CHOICES = 128
MAX_PROMPTS = 128
_SEEDS = 2**63
_IGNORED = {
    "user",
    "metadata",
    "store",
    "service_tier",
    "safety_identifier",
    "prompt_cache_key",
    "prompt_cache_retention",
    "parallel_tool_calls",
}
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "logit_bias": ({},),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "audio": (),
    "prediction": (),
    "reasoning_effort": ("none",),
    "verbosity": ("medium",),
    "web_search_options": (),
    "suffix": ("",),
    "echo": (False,),
    "best_of": (1,),
}
_ROLES = ("system", "developer", "user", "assistant")
_EMPTY_PARTS = ("refusal", "audio", "tool_calls", "function_call", "tool_call_id")


@dataclass(frozen=True)
class Asked:
    """A request, checked by itself. What depends on the model is checked later.

    `prompts`: conversations, texts or token ids. `top_logprobs`: alternatives to report, or None for no
    log-probabilities. `strength`: one for all proxies, or by name.
    """

    is_chat: bool
    model: str
    prompts: list[Any]
    n: int
    max_tokens: int | None
    temperature: float | None
    top_p: float
    seed: int | None
    stop: tuple[str, ...]
    top_logprobs: int | None
    stream: bool
    include_usage: bool
    strength: float | dict[str, float] | None
    max_kl: float | None
    show_rejections: bool
    template_arguments: dict[str, Any] | None


def parse_json(body: bytes) -> dict[str, Any]:
    """The object in a body.

    Raises:
        RequestError: bytes that are not one JSON object, or hold a number that is none.
    """
    try:
        found = json.loads(body.decode("utf-8"), parse_constant=_refuse_constant)
    except UnicodeDecodeError as error:
        raise RequestError("The body is not UTF-8.") from error
    except RecursionError as error:
        raise RequestError("The body is nested too deeply.") from error
    except ValueError as error:
        raise RequestError(f"The body is not JSON: {shown(str(error), quoted=False)}.") from error
    if not isinstance(found, dict):
        raise RequestError(f"The body must be a JSON object, not {_named(found)}.")
    return found


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a JSON number")


def read_request(values: Mapping[str, Any], *, is_chat: bool) -> Asked:
    """Check every field of a request.

    Raises:
        RequestError: the first field at fault.
    """
    fields = _Fields(values)
    asked = Asked(
        is_chat=is_chat,
        model=fields.take("model", _text, required=True),
        prompts=[fields.take("messages", _messages, required=True)]
        if is_chat
        else fields.take("prompt", _prompts, required=True),
        n=fields.take("n", _whole(1, MAX_CHOICES), 1),
        max_tokens=_max_tokens(fields),
        temperature=fields.take("temperature", _number(0, 2)),
        top_p=fields.take("top_p", _number(0, 1, above=True), 1.0),
        seed=fields.take("seed", _whole(-_SEEDS, _SEEDS - 1)),
        stop=fields.take("stop", _stop, ()),
        top_logprobs=_top_logprobs(fields, is_chat),
        stream=fields.take("stream", _flag, False),
        include_usage=fields.take("stream_options", _stream_options, False),
        strength=fields.take("strength", _strength),
        max_kl=fields.take("max_kl", _number(0, 1e6)),
        show_rejections=fields.take("show_rejections", _flag, False),
        template_arguments=fields.take("chat_template_kwargs", _template_arguments) if is_chat else None,
    )
    fields.check_rest()
    if len(asked.prompts) * asked.n > MAX_CHOICES:
        raise RequestError(f"A request may have at most {MAX_CHOICES} answers.", "n")
    return asked


class _Fields:
    """The fields of a request, each taken once. `null` stands for a field that is left out."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self.values, self.taken = values, set[str]()

    def take(self, name: str, read: Callable[[str, Any], Any], default: Any = None, *, required: bool = False) -> Any:
        self.taken.add(name)
        value = self.values.get(name)
        if value is None:
            if required:
                raise RequestError(f"{name} is missing.", name)
            return default
        return read(name, value)

    def check_rest(self) -> None:
        """Refuse what was not taken, unless it says nothing."""
        for name, value in self.values.items():
            if name in self.taken or name in _IGNORED or value is None:
                continue
            if name not in _NEUTRAL:
                hint = did_you_mean(name, [*self.taken, *_NEUTRAL]) or "."
                raise RequestError(f"There is no field {shown(name)}{hint}", shown(name, quoted=False))
            if not any(value is each or (type(value) is not bool and value == each) for each in _NEUTRAL[name]):
                raise RequestError(f"This server does not support {name}.", name)


def _named(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a text", bool: "true or false", type(None): "null"}
    return next((text for kind, text in names.items() if isinstance(value, kind)), "a number")


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise RequestError(f"{name} must be a text, not {_named(value)}.", name)
    if TEXT.refusal(value) is not None:
        raise RequestError(f"{name} must be text without NUL, in UTF-8.", name)
    return value


def _flag(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise RequestError(f"{name} must be true or false, not {shown(value)}.", name)
    return value


def _number(low: float, high: float, *, above: bool = False) -> Callable[[str, Any], float]:
    limits = f"above {low:g} and at most {high:g}" if above else f"between {low:g} and {high:g}"

    def read(name: str, value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise RequestError(f"{name} must be a number, not {_named(value)}.", name)
        fits = low < value <= high if above else low <= value <= high
        if not fits or not math.isfinite(value):
            raise RequestError(f"{name} must be {limits}, not {shown(value)}.", name)
        return float(value)

    return read


def _whole(low: int, high: int) -> Callable[[str, Any], int]:
    def read(name: str, value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int):
            raise RequestError(f"{name} must be a whole number, not {shown(value)}.", name)
        if not low <= value <= high:
            raise RequestError(f"{name} must be between {low} and {high}.", name)
        return value

    return read


def _max_tokens(fields: _Fields) -> int | None:
    old = fields.take("max_tokens", _whole(1, 2**31))
    new = fields.take("max_completion_tokens", _whole(1, 2**31))
    if old is not None and new is not None and old != new:
        raise RequestError("Give only one of max_tokens and max_completion_tokens.", "max_tokens")
    found: int | None = old if new is None else new
    return found


def _top_logprobs(fields: _Fields, is_chat: bool) -> int | None:
    if not is_chat:
        count: int | None = fields.take("logprobs", _whole(0, MAX_LOGPROBS))
        return count
    wanted = fields.take("logprobs", _flag, False)
    alternatives = fields.take("top_logprobs", _whole(0, MAX_LOGPROBS))
    if alternatives is not None and not wanted:
        raise RequestError("top_logprobs needs logprobs to be true.", "top_logprobs")
    return (alternatives or 0) if wanted else None


def _stop(name: str, value: Any) -> tuple[str, ...]:
    items = [value] if isinstance(value, str) else value
    if not isinstance(items, list) or len(items) > MAX_STOPS:
        raise RequestError(f"{name} must be a text or a list of at most {MAX_STOPS} texts.", name)
    found = tuple(_text(name, item) for item in items)
    if any(not 0 < len(item) <= MAX_STOP_LENGTH for item in found):
        raise RequestError(f"Every {name} must have between 1 and {MAX_STOP_LENGTH} characters.", name)
    return found


def _stream_options(name: str, value: Any) -> bool:
    if not isinstance(value, dict) or not set(value) <= {"include_usage", "include_obfuscation"}:
        raise RequestError(f"{name} must be an object with include_usage.", name)
    return bool(_flag("stream_options.include_usage", value.get("include_usage") or False))


def _strength(name: str, value: Any) -> float | dict[str, float]:
    if isinstance(value, dict):
        found = {}
        for proxy, own in value.items():
            found[proxy] = _number(0, 1e12)(f"{name} of {shown(proxy)}", own)
            check_strength(found[proxy], proxy, name)
        return found
    number = _number(0, 1e12)(name, value)
    check_strength(number, "the proxies", name)
    return number


def _template_arguments(name: str, value: Any) -> dict[str, Any]:
    if refusal := TEMPLATE_ARGUMENTS.refusal(value):
        raise RequestError(f"{name} must be {refusal}.", name)
    return dict(value)


def _prompts(name: str, value: Any) -> list[Any]:
    if isinstance(value, str):
        return [_text(name, value)]
    if not isinstance(value, list) or not value:
        raise RequestError(f"{name} must be a text, token ids, or a list of either.", name)
    if all(isinstance(item, int) and not isinstance(item, bool) for item in value):
        return [_Ids(value)]
    if len(value) > MAX_PROMPTS:
        raise RequestError(f"{name} may hold at most {MAX_PROMPTS} prompts.", name)
    found: list[Any] = []
    for item in value:
        if isinstance(item, str):
            found.append(_text(name, item))
        elif isinstance(item, list) and item and all(type(token) is int for token in item):
            found.append(_Ids(item))
        else:
            raise RequestError(f"{name} must be a text, token ids, or a list of either.", name)
    return found


class _Ids(list[int]):
    """A prompt given as token ids."""


def token_ids_of(prompt: Any, vocabulary: int) -> list[int] | None:
    """The ids of a prompt that was given as token ids, None for any other.

    Raises:
        RequestError: an id outside the vocabulary.
    """
    if not isinstance(prompt, _Ids):
        return None
    if any(not 0 <= token < vocabulary for token in prompt):
        raise RequestError(f"A token id in prompt is outside the vocabulary of {vocabulary}.", "prompt")
    return list(prompt)


def _messages(name: str, value: Any) -> list[dict[str, str]]:
    if not isinstance(value, list) or not value:
        raise RequestError(f"{name} must be a list of at least one message.", name)
    return [_message(f"{name}[{place}]", each) for place, each in enumerate(value)]


def _message(name: str, value: Any) -> dict[str, str]:
    if not isinstance(value, dict):
        raise RequestError(f"{name} must be an object, not {_named(value)}.", name)
    role, content = value.get("role"), value.get("content")
    if role not in _ROLES:
        raise RequestError(f"{name}.role must be one of {', '.join(_ROLES)}, not {shown(role)}.", f"{name}.role")
    for key, own in value.items():
        if key in ("role", "content", "name") or (key in _EMPTY_PARTS and not own):
            continue
        raise RequestError(f"{name} has {shown(key)}, which this server does not read.", name)
    if isinstance(content, list):
        content = "".join(_part(f"{name}.content[{place}]", part) for place, part in enumerate(content))
    return {"role": "system" if role == "developer" else role, "content": _text(f"{name}.content", content)}


def _part(name: str, value: Any) -> str:
    if not isinstance(value, dict) or value.get("type") != "text":
        raise RequestError(f"{name} must be a part of type text.", name)
    return _text(f"{name}.text", value.get("text"))
