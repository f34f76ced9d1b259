"""Where the prompt ends and the answer begins, in conversations that hold both."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

Messages = Sequence[Mapping[str, Any]]

_FORMATS = [
    (users.split("|"), assistants.split("|"))
    for users, assistants in (
        (
            "human|user|customer|用户|用戶|人类|ユーザー|사용자|пользователь|usuario|utilisateur|benutzer",
            "assistant|ai|bot|chatbot|robot|gpt|chatgpt|claude|model|agent"
            "|助手|助理|アシスタント|어시스턴트|ассистент|asistente|assistent",
        ),
        ("question|问题", "answer|回答"),
        ("q|问", "a|答"),
        ("instruction|input|prompt", "response"),
        ("", "tl;dr"),
    )
]
"""Names of users and of assistants that stand together in one format, the most usual first."""
_USERS = dict.fromkeys(name for users, _ in _FORMATS for name in users if name)
_ASSISTANTS = dict.fromkeys(name for _, assistants in _FORMATS for name in assistants)
_SYSTEM = "system"
_MARK = re.compile(
    # The first character is a set, which makes the search fast.
    r"[\n.!?。！？<\[](?i:"
    # A name at the start of a line or after the end of a sentence, with a colon: "\n\nAssistant: ", "### Response:".
    rf"(?<![<\[])[^\S\n]*(?:\#+[ ]?|\*\*)?(?P<name>{'|'.join([*_ASSISTANTS, *_USERS, _SYSTEM])})"
    r"(?:\*\*)?[^\S\n]*[:：](?:\*\*)?"
    # A marker of a chat template.
    r"|(?<=<)(?:\|im_start\|>(?:(?P<im>assistant)|\w+)"
    r"|\|start_header_id\|>(?:(?P<header>assistant)|\w+)<\|end_header_id\|>"
    r"|\|(?:(?P<bar>assistant)|user|system)\|>"
    r"|｜(?:(?P<wide>assistant)|user)｜>"
    r"|start_of_turn>(?:(?P<turn>model)|\w+))"
    r"|(?<=\[)(?:(?P<inst>/INST\])|INST\]))",
)


class _Mark(NamedTuple):
    """Where a turn begins: the mark is `text[start:end]`. `name`: of a mark in words, in lower case; else None."""

    start: int
    end: int
    role: str
    name: str | None
    n_newlines: int


def split_texts(chosen: str, rejected: str) -> tuple[str, str, str] | None:
    """Prompt, chosen and rejected of two texts that begin with the same prompt. None if they share no prompt.

    The prompt ends after the last mark of an assistant's turn that both share (`Assistant:`, `助手：`, a chat template's
    marker) and the white space behind it. Without any mark, it ends at the last line end that both share.
    """
    shared = _shared_length(chosen, rejected)
    marks = _turn_marks(chosen[:shared])
    end = max((mark.end for mark in marks if mark.role == "assistant"), default=0)
    if not marks:
        end = chosen.rfind("\n", 0, shared) + 1
    elif end:
        end = shared - len(chosen[end:shared].lstrip())
    if not chosen[:end].strip():
        return None
    return chosen[:end], chosen[end:], rejected[end:]


def text_turns(text: str) -> list[dict[str, str]] | None:
    """A text with marked turns as messages. None without marks, or with text before the first one."""
    marks = _turn_marks(text)
    if not marks or text[: marks[0].start].strip():
        return None
    ends = [mark.start for mark in marks[1:]] + [len(text)]
    return [{"role": mark.role, "content": text[mark.end : end].strip()} for mark, end in zip(marks, ends, strict=True)]


def _turn_marks(text: str) -> list[_Mark]:
    """The marks of turns in a text. Lines of an answer that look like a mark of another format do not count.

    The first mark tells the format. Of names, those of one user and one assistant are marks. If the first turn begins
    after an empty line, or the first answer where nothing precedes that turn, so do all others.
    """
    marks = _every_mark(text)
    if not marks or marks[0].name is None:
        return [mark for mark in marks if mark.name is None]
    wanted, assistant = _names_of_format(tuple(dict.fromkeys(mark.name for mark in marks if mark.name is not None)))
    found = [mark for mark in marks if mark.name in wanted]
    spaced = marks[0].n_newlines or next((mark.n_newlines for mark in found if mark.name == assistant), 0)
    return [mark for mark in found if mark is found[0] or mark.n_newlines >= min(2, spaced)]


@lru_cache
def _names_of_format(names: tuple[str, ...]) -> tuple[set[str | None], str | None]:
    """The names that begin turns, and the assistant's, by the names in order of their first appearance."""
    user = next((name for name in names if name in _USERS), None)
    users, assistants = next((each for each in _FORMATS if user in each[0]), ((), ()))
    assistant = next((name for name in assistants if name in names), None)
    assistant = assistant or next((name for name in names if name in _ASSISTANTS), None)
    # An instruction may have an input.
    return {user, assistant, _SYSTEM} | ({*users} if "instruction" in users else set()), assistant


def _every_mark(text: str) -> list[_Mark]:
    found = []
    for mark in _MARK.finditer("\n" + text):  # the first line counts as one too
        name, line = mark["name"], mark.start()
        if name is not None:
            name = name.lower()
            role = "system" if name == _SYSTEM else "assistant" if name in _ASSISTANTS else "user"
        else:
            role = "assistant" if mark.lastgroup is not None else "system" if _SYSTEM in mark[0].lower() else "user"
        while line and text[line - 1] == "\n":
            line -= 1
        found.append(_Mark(mark.start(), mark.end() - 1, role, name, mark.start() - line))
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
