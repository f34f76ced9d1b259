"""TRL's dataset types: what a row needs, and the one form in which it is used.

A prompt is text or a list of messages, and so is an answer. In one row all of them are text, or all are messages. A
`system` column becomes the first message of the prompt. A prompt that the answers repeat is kept once.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from frugalign.data.rows import json_type
from frugalign.data.turns import is_answer, repeated, split_messages, split_texts, text_turns

KINDS: dict[str, tuple[str, ...]] = {
    "prompt-only": ("prompt",),
    "prompt-completion": ("prompt", "completion"),
    "preference": ("chosen", "rejected"),
    "unpaired-preference": ("prompt", "completion", "label"),
    "groups": ("prompt", "completions"),
}
"""TRL's types and the columns they need, and our groups of responses. A preference set may hold its prompt in a separate
column or within both answers."""
ANSWERS = {"prompt-completion": ("completion",), "preference": ("chosen", "rejected")}
ANSWERS["unpaired-preference"] = ANSWERS["prompt-completion"]
_OF_GROUPS: dict[str, tuple[type, ...]] = {"completion_ids": (list,), "rewards": (int, float, type(None))}
"""Columns that groups may have, with the types of an entry."""
UNREAD = (
    *("question", "instruction", "query", "input", "context", "history", "conversation", "conversations"),
    *("system_prompt", "system_message", "tools", "functions", "documents", "image", "images"),
)
"""Columns that change what a row means and that nothing reads. They are named in a warning."""
Row = dict[str, Any]
_WRITTEN_MESSAGES = re.compile(r"\s*(?:array\()?\[\s*\{\s*['\"](?:role|content|from|value)['\"]\s*:")
_LONGEST_MARK = 60
"""Characters within which the mark of a first turn ends."""
_BOOLEANS = {"true": True, "false": False}


class Misfit(ValueError):
    """Why a row cannot be used."""


class EmptyAnswer(Misfit):
    """An answer that holds its prompt and nothing else."""


class NoSharedPrompt(Misfit):
    """A pair without a prompt column whose answers share no prompt."""


def detect_kind(columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> str:
    """The richest type whose columns a file has, by its first rows. Completions with a `label` are unpaired preferences
    only if one of the labels is true or false; `completions` are groups only if they are lists of texts."""
    if {"chosen", "rejected"} & set(columns):
        return "preference"
    if {"prompt", "completions"} <= set(columns) and any(_is_texts(row.get("completions")) for row in rows):
        return "groups"
    if "completion" not in columns:
        return "prompt-only"
    labels = [row.get("label") for row in rows]
    labelled = any(isinstance(label, bool) or str(label).lower() in _BOOLEANS for label in labels)
    return "unpaired-preference" if labelled else "prompt-completion"


def wanted_columns(kind: str) -> list[str]:
    """The columns that the rows of this type are read from."""
    more = tuple(_OF_GROUPS) if kind == "groups" else ()
    return list(dict.fromkeys(("prompt", *KINDS[kind], *more, "system")))


def standard_row(row: Mapping[str, Any], kind: str, *, has_prompt: bool = True) -> Row:
    """A row's prompt and answers in their one form, without its other columns.

    Raises:
        Misfit: the row cannot be used; the message is the reason.
    """
    needed = KINDS[kind] if not has_prompt or "prompt" in KINDS[kind] else ("prompt", *KINDS[kind])
    for name in needed:
        _check(name, row.get(name))
    found = {name: row[name] for name in needed}
    if kind == "groups":
        found |= _group(row)
    if kind in ANSWERS:
        _separate(found, ANSWERS[kind])
    system = row.get("system")
    if system is not None:
        _add_system(found, system)
    if kind in ANSWERS and not isinstance(found["prompt"], str):
        for name in ANSWERS[kind]:
            found[name] = as_messages(found[name], "assistant")
    return found


def as_messages(value: Any, role: str) -> Any:
    """Text as one message; messages as they are."""
    return [{"role": role, "content": value}] if isinstance(value, str) else value


def read_boolean(value: Any) -> Any:
    """A label that a text file spells out; anything else as it is."""
    return _BOOLEANS.get(value.lower(), value) if isinstance(value, str) else value


def _check(name: str, value: Any) -> None:
    reason = _reason(name, value)
    if reason is not None:
        raise Misfit(reason)


def _reason(name: str, value: Any) -> str | None:
    if value is None:
        return f"`{name}` is missing"
    if name == "label":
        return None if isinstance(value, bool) else f"`label` is {json_type(value)}, not true or false"
    if name == "completions":
        return None if _is_texts(value) and len(value) > 1 else "`completions` must be a list of at least two texts"
    if isinstance(value, str):
        return _text_reason(name, value)
    if isinstance(value, float) and math.isnan(value):
        return f"`{name}` is NaN"
    if isinstance(value, list):
        return _message_reason(name, value)
    return f"`{name}` is {json_type(value)}, not text or a list of messages"


def _text_reason(name: str, value: str) -> str | None:
    if not value or value.isspace():
        return f"`{name}` is empty"
    if "\0" in value:
        return f"`{name}` holds a NUL character"
    if value.lstrip()[:1] in "[a" and _WRITTEN_MESSAGES.match(value):
        return f"`{name}` is a list of messages that was written as text (`frugalign convert` reads it)"
    return None


def _message_reason(name: str, messages: list[Any]) -> str | None:
    if not messages:
        return f"`{name}` is empty"
    for place, message in enumerate(messages, start=1):
        which = f"message {place} of `{name}`"
        if not isinstance(message, dict):
            return f"{which} is {json_type(message)}, not an object with role and content"
        if {"from", "value"} <= message.keys() and message.get("role") is None:
            return f"{which} has `from` and `value`, not role and content (`frugalign convert` renames them)"
        for key in ("role", "content"):
            if not isinstance(message.get(key), str):
                return (
                    f"{which} has no {key}"
                    if message.get(key) is None
                    else f"{which} has {json_type(message[key])} as its {key}, not text"
                )
        if not message["role"].strip():
            return f"{which} has an empty role"
        if "\0" in message["content"]:
            return f"{which} holds a NUL character"
    if not messages[-1]["content"].strip():
        return f"`{name}` is empty (its last message has no content)"
    return None


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(each, str) for each in value)


def _group(row: Mapping[str, Any]) -> Row:
    """The token ids and rewards of a group. Rewards may be missing for some of its responses."""
    found = {name: row[name] for name in _OF_GROUPS if row.get(name) is not None}
    for name, values in found.items():
        if not isinstance(values, list) or not all(isinstance(each, _OF_GROUPS[name]) for each in values):
            raise Misfit(f"`{name}` must be a list with one entry per completion")
        if len(values) != len(row["completions"]):
            raise Misfit(f"{len(row['completions'])} completions, but {len(values)} `{name}`")
    return found


def _separate(row: Row, answers: Sequence[str]) -> None:
    """Take the prompt out of the answers (in place)."""
    kinds = {isinstance(row[name], str) for name in answers}
    if len(kinds) > 1:
        one, other = answers
        raise Misfit(f"`{one}` is {json_type(row[one])}, but `{other}` is {json_type(row[other])}")
    if "prompt" not in row:
        _find_prompt(row)
    else:
        _read_transcripts(row, answers)
        if not isinstance(row[answers[0]], str):
            _drop_repeated(row, answers)
    _check("prompt", row["prompt"])  # it may have been a part of the answers
    for name in answers:
        if not (row[name] if not isinstance(row[name], str) else row[name].strip()):
            raise EmptyAnswer(f"`{name}` is empty after the prompt that it begins with")


def _find_prompt(row: Row) -> None:
    """The prompt of a pair that has it within both answers (in place)."""
    chosen, rejected = row["chosen"], row["rejected"]
    if isinstance(chosen, str):
        if (found := split_texts(chosen, rejected)) is None:
            raise NoSharedPrompt("chosen and rejected share no prompt")
        row["prompt"], row["chosen"], row["rejected"] = found
        return
    shared = split_messages(chosen, rejected)
    if not shared:
        raise NoSharedPrompt("chosen and rejected share no prompt")
    row["prompt"], row["chosen"], row["rejected"] = chosen[:shared], chosen[shared:], rejected[shared:]


def _read_transcripts(row: Row, answers: Sequence[str]) -> None:
    """Text answers that are whole conversations with marked turns and begin with the prompt, as messages (in place)."""
    prompt, texts = row["prompt"], [row[name] for name in answers]
    if not isinstance(prompt, str) or not isinstance(texts[0], str):
        return
    said = prompt.strip()
    if any(text.startswith(said) or said not in text[: len(said) + _LONGEST_MARK] for text in texts):
        return
    turns = [text_turns(text) for text in texts]
    if all(each is not None and each[0] == {"role": "user", "content": said} for each in turns):
        row |= dict(zip(answers, turns, strict=True))


def _drop_repeated(row: Row, answers: Sequence[str]) -> None:
    """Keep a prompt once that conversations repeat (in place). The prompt becomes messages."""
    heads = [repeated(row["prompt"], row[name]) for name in answers]
    if all(heads):
        if len(answers) == 2 and (shared := split_messages(*(row[name] for name in answers))) >= heads[0]:
            heads = [shared, shared]
        row["prompt"] = row[answers[0]][: heads[0]]
        for name, head in zip(answers, heads, strict=True):
            row[name] = row[name][head:]
    for name in answers:
        if row[name] and not is_answer(row[name][0]):
            role = row[name][0]["role"]
            raise Misfit(f"`{name}` begins with a message of the role {role!r} that does not repeat `prompt`")
    row["prompt"] = as_messages(row["prompt"], "user")


def _add_system(row: Row, system: Any) -> None:
    """Put a system prompt before the conversation (in place)."""
    if not isinstance(system, str):
        raise Misfit(f"`system` is {json_type(system)}, not text")
    if not system.strip():
        return
    if "\0" in system:
        raise Misfit("`system` holds a NUL character")
    messages = as_messages(row["prompt"], "user")
    if messages[0]["role"] == "system":
        if messages[0]["content"].strip() != system.strip():
            raise Misfit("`system` differs from the system message that the prompt begins with")
        return
    row["prompt"] = [{"role": "system", "content": system}, *messages]
