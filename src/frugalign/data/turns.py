"""Where the prompt ends and the answer begins, in conversations that hold both."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

Messages = Sequence[Mapping[str, Any]]

_ASSISTANTS = (
    "assistant|ai|bot|chatbot|robot|gpt|chatgpt|claude|model|agent|answer|a|response|tl;dr"
    "|助手|助理|回答|答|アシスタント|어시스턴트|ассистент|asistente|assistent"
)
_USERS = (
    "human|user|question|q|instruction|input|prompt|customer|system"
    "|用户|用戶|人类|问题|问|ユーザー|사용자|пользователь|usuario|utilisateur|benutzer"
)
_MARK = re.compile(
    # The first character is a set, which makes the search fast.
    r"[\n.!?。！？<\[](?i:"
    # A name at the start of a line or after the end of a sentence, with a colon: "\n\nAssistant: ", "### Response:".
    rf"(?<![<\[])[^\S\n]*(?:\#+[ ]?|\*\*)?(?:(?P<name>{_ASSISTANTS})|{_USERS})(?:\*\*)?[^\S\n]*[:：](?:\*\*)?"
    # A marker of a chat template.
    r"|(?<=<)(?:\|im_start\|>(?:(?P<im>assistant)|\w+)"
    r"|\|start_header_id\|>(?:(?P<header>assistant)|\w+)<\|end_header_id\|>"
    r"|\|(?:(?P<bar>assistant)|user|system)\|>"
    r"|｜(?:(?P<wide>assistant)|user)｜>"
    r"|start_of_turn>(?:(?P<turn>model)|\w+))"
    r"|(?<=\[)(?:(?P<inst>/INST\])|INST\]))",
)


def split_texts(chosen: str, rejected: str) -> tuple[str, str, str] | None:
    """Prompt, chosen and rejected of two texts that begin with the same prompt. None if they share no prompt.

    The prompt ends after the last mark of an assistant's turn that both share (`Assistant:`, `助手：`, a chat template's
    marker) and the white space behind it. Without any mark, it ends at the last line end that both share.
    """
    shared = _shared_length(chosen, rejected)
    end, marked = 0, False
    for mark in _MARK.finditer("\n" + chosen[:shared]):  # the first line counts as one too
        marked = True
        if mark.lastgroup is not None:
            end = mark.end() - 1
    if not marked:
        end = chosen.rfind("\n", 0, shared) + 1
    elif end:
        end = shared - len(chosen[end:shared].lstrip())
    if not chosen[:end].strip():
        return None
    return chosen[:end], chosen[end:], rejected[end:]


def text_turns(text: str) -> list[dict[str, str]] | None:
    """A text with marked turns as messages. None without marks, or with text before the first one."""
    found: list[dict[str, str]] = []
    start = 0
    text = "\n" + text
    for mark in _MARK.finditer(text):
        before = text[start : mark.start() + 1].strip()
        if found:
            found[-1]["content"] = before
        elif before:
            return None
        name = mark[0].strip().strip(":：#*").lower()
        role = "assistant" if mark.lastgroup is not None else "system" if "system" in name else "user"
        found.append({"role": role, "content": ""})
        start = mark.end()
    if not found:
        return None
    found[-1]["content"] = text[start:].strip()
    return found


def _shared_length(one: str, other: str) -> int:
    known, limit = 0, min(len(one), len(other))
    while known < limit:
        middle = (known + limit + 1) // 2
        if one[known:middle] == other[known:middle]:
            known = middle
        else:
            limit = middle - 1
    return known


def split_messages(chosen: Messages, rejected: Messages) -> int:
    """How many messages of two conversations are their prompt. 0 if they share no prompt.

    Both answers begin with a message of the assistant, and neither is empty.
    """
    shared, shortest = 0, min(len(chosen), len(rejected))
    while shared < shortest and same_message(chosen[shared], rejected[shared]):
        shared += 1
    shared = min(shared, shortest - 1)
    while shared > 0 and not (is_answer(chosen[shared]) and is_answer(rejected[shared])):
        shared -= 1
    return shared


def is_answer(message: Mapping[str, Any]) -> bool:
    """Whether this message is the assistant's."""
    return message["role"] not in ("system", "user", "developer")


def same_message(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two messages have the same role and content."""
    return bool(one["role"] == other["role"] and one["content"] == other["content"])


def repeated(prompt: str | Messages, answer: Messages) -> int:
    """How many messages at the start of an answer repeat the prompt."""
    if isinstance(prompt, str):
        # A system prompt may stand before the user's turn.
        for place, message in enumerate(answer[:2]):
            if message["role"] == "user":
                return place + 1 if message["content"].strip() == prompt.strip() else 0
        return 0
    if len(answer) <= len(prompt):
        return 0
    return len(prompt) if all(map(same_message, prompt, answer)) else 0
