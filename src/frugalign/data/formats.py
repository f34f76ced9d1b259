"""Published formats of preference data and instructions, recognised by their columns and rewritten as TRL's types."""

from __future__ import annotations

import ast
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from frugalign.data.rows import json_type, printable
from frugalign.data.standard import Misfit, Row
from frugalign.data.turns import text_turns

PROMPTS = ("prompt", "instruction", "question", "query", "input", "history")
"""Names of the column with the prompt, in order of preference."""
_CONTEXTS = ("input", "context")
_UNCARRIED = (
    "tool_calls",
    "tool_call_id",
    "function_call",
    "tools",
    "reasoning_content",
    "reasoning",
    "thinking",
    "images",
)
"""What a message says beside its role and content, in the spellings of chat templates. Nothing reads it."""
_COMPLETIONS = ("completion", "output", "response", "answer", "target")
_SYSTEMS = ("system", "system_prompt", "system_message")
_CONVERSATIONS = ("conversations", "conversation", "messages")
_ROLES = {
    **{"human": "user", "user": "user", "prompter": "user", "question": "user"},
    **{"gpt": "assistant", "assistant": "assistant", "chatgpt": "assistant", "bing": "assistant", "bard": "assistant"},
    **{"model": "assistant", "answer": "assistant", "system": "system", "tool": "tool"},
}


class Uncarried(Misfit):
    """A message that says more than its role and content."""


@dataclass(frozen=True)
class Format:
    """A published format.

    Attributes:
        needs: columns that it has.
        kind: the dataset type that its rows become.
        rows: the rows that one of its rows becomes. The second argument names the preference to follow, or is None.
        says: how it is read, for the report. `{prefer}` stands for the preference that was followed.
        preferences: columns that say which answer is better; the first is followed unless another is asked for.
    """

    name: str
    needs: frozenset[str]
    kind: str
    rows: Callable[[Mapping[str, Any], str | None], Iterator[Row]]
    says: str = ""
    preferences: tuple[str, ...] = ()


def recognise(columns: Sequence[str]) -> Format | None:
    """The published format with these columns. None for TRL's own types and for unknown columns."""
    known = set(columns)
    found = next((each for each in FORMATS if each.needs <= known), None)
    if found is not None:
        return found
    if "chosen" in known or "rejected" in known:
        other = next((name for name in PROMPTS[1:] if name in known), None)
        return _OTHER_PROMPT if {"chosen", "rejected"} <= known and "prompt" not in known and other else None
    if any(name in known for name in PROMPTS[1:]) and "prompt" not in known:
        return _INSTRUCTIONS if any(name in known for name in _COMPLETIONS) else _PROMPTS
    if "prompt" in known and "completion" not in known and any(name in known for name in _COMPLETIONS):
        return _INSTRUCTIONS
    if "prompt" not in known and any(name in known for name in _CONVERSATIONS):
        return _CONVERSATION
    return None


def conversion_hint(columns: Sequence[str], file: str) -> str:
    """How to convert a file of a recognised format, to append to a sentence. Empty for any other file."""
    found = recognise(columns)
    if found is None:
        return ""
    return f"; this looks like {found.name}: `frugalign convert {printable(file.split(' [')[0])} OUT.jsonl` writes it as {found.kind}"


def messages_of(value: Any) -> list[Row]:
    """A conversation as messages with role and content. Reads ShareGPT's `from` and `value`, and lists written as text.

    Raises:
        Misfit: it is no conversation.
    """
    if isinstance(value, str):
        value = _parsed(value)
    if isinstance(value, dict):
        value = [value]
    if not isinstance(value, list) or not value:
        raise Misfit("the conversation is empty")
    return [_message(each) for each in value]


def _parsed(text: str) -> Any:
    for parse in (json.loads, ast.literal_eval):
        try:
            return parse(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
    raise Misfit("the conversation is text that cannot be parsed")


def _message(message: Any) -> Row:
    if not isinstance(message, dict):
        raise Misfit("a message is not an object with role and content")
    if (other := next((name for name in _UNCARRIED if not _is_empty(message.get(name))), None)) is not None:
        raise Uncarried(f"a message has `{other}`, which would be lost")
    role = message.get("role", message.get("from"))
    content = message.get("content", message.get("value", message.get("text")))
    if not isinstance(role, str) or not isinstance(content, str):
        raise Misfit("a message has no role or no content")
    return {"role": _ROLES.get(role.lower(), role.lower()), "content": content}


def _is_empty(value: Any) -> bool:
    """Whether nothing is lost without this value, such as a list of empty fields that Parquet fills in."""
    if isinstance(value, dict):
        return all(map(_is_empty, value.values()))
    if isinstance(value, str):
        return not value.strip()
    return value is None or (isinstance(value, list) and all(map(_is_empty, value)))


def _split_last(messages: list[Row]) -> Row:
    """The last message of the assistant as the completion, all before it as the prompt."""
    while messages and messages[-1]["role"] != "assistant":
        messages = messages[:-1]
    if len(messages) < 2:
        raise Misfit("the conversation has no answer after a prompt")
    return {"prompt": messages[:-1], "completion": messages[-1:]}


def _system_of(row: Mapping[str, Any]) -> Row:
    found = next((row[name] for name in _SYSTEMS if row.get(name)), None)
    return {"system": found} if found is not None else {}


def _prompt_of(row: Mapping[str, Any]) -> Any:
    name = next((name for name in PROMPTS if row.get(name)), None)
    if name is None:
        raise Misfit("the prompt is empty")
    prompt = row[name]
    contexts = {each: row[each] for each in _CONTEXTS if each != name and not _is_empty(row.get(each))}
    if name != "history" and not _is_empty(row.get("history")):
        raise Misfit(f"`history` stands beside `{name}`; make one list of messages of both")
    for each, value in contexts.items():
        if not isinstance(value, str) or not isinstance(prompt, str):
            which, found = (each, value) if not isinstance(value, str) else (name, prompt)
            raise Misfit(
                f"`{which}` is {json_type(found)}, which is not joined with `{name if which == each else each}`"
            )
    return "\n\n".join([prompt, *contexts.values()]) if contexts else prompt


def _other_prompt(row: Mapping[str, Any], _: str | None) -> Iterator[Row]:
    pair = {name: _answer(row[name]) for name in ("chosen", "rejected")}
    yield {"prompt": _prompt_of(row), **_system_of(row), **pair}


def _answer(value: Any) -> Any:
    return value if isinstance(value, str) else messages_of(value)


def _instructions(row: Mapping[str, Any], _: str | None) -> Iterator[Row]:
    answer = next((row[name] for name in _COMPLETIONS if row.get(name)), None)
    if answer is None:
        raise Misfit("the answer is empty")
    yield {"prompt": _prompt_of(row), **_system_of(row), "completion": answer}


def _prompts(row: Mapping[str, Any], _: str | None) -> Iterator[Row]:
    yield {"prompt": _prompt_of(row), **_system_of(row)}


def _conversation(row: Mapping[str, Any], _: str | None) -> Iterator[Row]:
    value = next((row[name] for name in _CONVERSATIONS if row.get(name)), None)
    yield {**_split_last(messages_of(value)), **_system_of(row)}


def _conversation_pair(row: Mapping[str, Any], _: str | None) -> Iterator[Row]:
    pair = {name: messages_of(row[name]) for name in ("chosen", "rejected")}
    yield {"prompt": messages_of(row["conversations"]), **_system_of(row), **pair}


def _marked_texts(row: Mapping[str, Any], _: str | None) -> Iterator[Row]:
    pair = {name: text_turns(row[name]) for name in ("chosen", "rejected")}
    if None in pair.values():
        raise Misfit("the text has no marked turns, or begins before the first one")
    yield pair


def zero_or_one(value: Any) -> int | None:
    """A choice or label as 0 or 1, also where a text file spells it out; None for anything else."""
    if isinstance(value, str):
        return {"0": 0, "1": 1, "false": 0, "true": 1}.get(value.strip().lower())
    return int(value) if value in (0, 1) else None


def _choice(first: str, second: str) -> Callable[[Mapping[str, Any], str | None], Iterator[Row]]:
    """Rows with two answers and a column that holds 0 where the first is better, 1 where the second is."""

    def rows(row: Mapping[str, Any], prefer: str | None) -> Iterator[Row]:
        assert prefer is not None
        better = zero_or_one(row.get(prefer))
        if better is None:
            raise Misfit(f"`{prefer}` is neither 0 nor 1")
        chosen, rejected = (first, second) if better == 0 else (second, first)
        yield {"prompt": _prompt_of(row), "chosen": row.get(chosen), "rejected": row.get(rejected)}

    return rows


def _stanford(row: Mapping[str, Any], _: str | None) -> Iterator[Row]:
    better = zero_or_one(row.get("labels"))
    if better is None:
        raise Misfit("`labels` is neither 0 nor 1")
    first, second = row.get("human_ref_A"), row.get("human_ref_B")
    chosen, rejected = (first, second) if better == 1 else (second, first)
    yield {"prompt": row.get("history"), "chosen": chosen, "rejected": rejected}


def _stack_exchange(row: Mapping[str, Any], _: str | None) -> Iterator[Row]:
    yield {"prompt": row.get("question"), "chosen": row.get("response_j"), "rejected": row.get("response_k")}


def _web_gpt(row: Mapping[str, Any], _: str | None) -> Iterator[Row]:
    question, scores = row.get("question"), (row.get("score_0"), row.get("score_1"))
    prompt = question.get("full_text") if isinstance(question, dict) else question
    if not all(isinstance(score, (int, float)) for score in scores) or scores[0] == scores[1]:
        raise Misfit("neither answer has the higher score")
    better = int(scores[1] > scores[0])  # type: ignore[operator]
    yield {"prompt": prompt, "chosen": row.get(f"answer_{better}"), "rejected": row.get(f"answer_{1 - better}")}


def _summaries(row: Mapping[str, Any], _: str | None) -> Iterator[Row]:
    info, summaries, choice = row["info"], row["summaries"], zero_or_one(row["choice"])
    if not isinstance(info, dict) or not isinstance(summaries, list) or len(summaries) != 2 or choice is None:
        raise Misfit("the row is not a post with two summaries and a choice of 0 or 1")
    if info.get("post"):
        prompt = f"SUBREDDIT: r/{info.get('subreddit')}\n\nTITLE: {info.get('title')}\n\nPOST: {info['post']}\n\nTL;DR:"
    else:
        prompt = f"TITLE: {info.get('title')}\n\nARTICLE: {info.get('article')}\n\nTL;DR:"
    texts = [each.get("text") if isinstance(each, dict) else None for each in summaries]
    yield {"prompt": prompt, "chosen": texts[choice], "rejected": texts[1 - choice]}


def _numbered_labels(row: Mapping[str, Any], _: str | None) -> Iterator[Row]:
    label = zero_or_one(row["label"])
    if label is None:
        raise Misfit("`label` is neither 0 nor 1")
    yield {"prompt": _prompt_of(row), **_system_of(row), "completion": row["completion"], "label": bool(label)}


def _ranked_replies(row: Mapping[str, Any], _: str | None) -> Iterator[Row]:
    """Best and worst of the ranked replies to every message of a user, in one tree of messages."""
    todo: list[tuple[list[Row], Any]] = [([], row["prompt"])]
    while todo:
        before, node = todo.pop()
        if not isinstance(node, dict) or node.get("deleted"):
            continue
        said = [*before, _message(node)]
        replies = [each for each in node.get("replies") or [] if isinstance(each, dict)]
        todo.extend((said, each) for each in reversed(replies))
        ranked = sorted(
            (each for each in replies if _is_rank(each.get("rank")) and not each.get("deleted")),
            key=lambda each: int(each["rank"]),
        )
        if said[-1]["role"] == "user" and len(ranked) > 1:
            yield {"prompt": said, "chosen": [_message(ranked[0])], "rejected": [_message(ranked[-1])]}


def _is_rank(value: Any) -> bool:
    """Whether it is a whole number; pandas writes a column with gaps as floats."""
    return not isinstance(value, bool) and (isinstance(value, int) or (isinstance(value, float) and value.is_integer()))


_PAIRS = "chosen is the answer that `{prefer}` prefers"
_FOLLOWS = "the last answer is the completion, all before it the prompt"
OPEN_ASSISTANT = "OpenAssistant's messages"
"""The one format whose rows belong together: each row is one message of a tree."""
FORMATS = (
    Format(
        OPEN_ASSISTANT,
        frozenset(("message_id", "parent_id", "text", "role")),
        "preference",
        _ranked_replies,
        "chosen is the best ranked reply to a user's message, rejected the worst",
    ),
    Format(
        "OpenAssistant's trees",
        frozenset(("message_tree_id", "prompt")),
        "preference",
        _ranked_replies,
        "chosen is the best ranked reply to a user's message, rejected the worst",
    ),
    Format("TL;DR comparisons", frozenset(("info", "summaries", "choice")), "preference", _summaries),
    Format(
        "PKU-SafeRLHF",
        frozenset(("response_0", "response_1", "better_response_id")),
        "preference",
        _choice("response_0", "response_1"),
        _PAIRS,
        ("better_response_id", "safer_response_id"),
    ),
    Format(
        "PKU-SafeRLHF",
        frozenset(("response_0", "response_1", "safer_response_id")),
        "preference",
        _choice("response_0", "response_1"),
        _PAIRS,
        ("safer_response_id",),
    ),
    Format(
        "Stanford's human preferences", frozenset(("history", "human_ref_A", "human_ref_B")), "preference", _stanford
    ),
    Format("StackExchange pairs", frozenset(("response_j", "response_k")), "preference", _stack_exchange),
    Format("WebGPT comparisons", frozenset(("answer_0", "answer_1", "score_0", "score_1")), "preference", _web_gpt),
    Format("ShareGPT pairs", frozenset(("conversations", "chosen", "rejected")), "preference", _conversation_pair),
)
_OTHER_PROMPT = Format("pairs whose prompt has another name", frozenset(), "preference", _other_prompt)
_INSTRUCTIONS = Format("instructions with answers (Alpaca)", frozenset(), "prompt-completion", _instructions)
_PROMPTS = Format("instructions", frozenset(), "prompt-only", _prompts)
_CONVERSATION = Format("conversations (ShareGPT)", frozenset(), "prompt-completion", _conversation, _FOLLOWS)
MARKED_TEXTS = Format(
    "HH-RLHF", frozenset(), "preference", _marked_texts, "each turn (Human:, Assistant:) is a message"
)
NUMBERED_LABELS = Format("labels of 0 and 1", frozenset(), "unpaired-preference", _numbered_labels)
