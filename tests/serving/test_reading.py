"""Requests are read strictly: every mistake is one sentence that names its field."""

from typing import Any

import pytest

from frugalign.serving.errors import RequestError
from frugalign.serving.reading import parse_json, read_request, token_ids_of
from frugalign.serving.settings import read_keys

CHAT: dict[str, Any] = {"model": "base", "messages": [{"role": "user", "content": "hello"}]}
TEXT: dict[str, Any] = {"model": "base", "prompt": "hello"}


def test_defaults() -> None:
    asked = read_request(CHAT, is_chat=True)
    assert (asked.n, asked.max_tokens, asked.temperature, asked.top_p, asked.seed) == (1, None, None, 1.0, None)
    assert (asked.stop, asked.top_logprobs, asked.stream, asked.max_kl, asked.strength) == ((), None, False, None, None)


def test_every_field() -> None:
    given = CHAT | {
        **{"n": 2, "max_completion_tokens": 5, "temperature": 0, "top_p": 0.5, "seed": -3, "stop": ["a", "b"]},
        **{"logprobs": True, "top_logprobs": 4, "stream": True, "stream_options": {"include_usage": True}},
        **{"strength": {"safe": 1}, "max_kl": 2, "show_rejections": True, "chat_template_kwargs": {"a": 1}},
        **{"frequency_penalty": 0.0, "tools": [], "response_format": {"type": "text"}, "user": "someone"},
    }
    asked = read_request(given, is_chat=True)
    assert (asked.n, asked.max_tokens, asked.temperature, asked.seed, asked.stop) == (2, 5, 0.0, -3, ("a", "b"))
    assert (asked.top_logprobs, asked.include_usage, asked.strength, asked.max_kl) == (4, True, {"safe": 1.0}, 2.0)
    assert asked.show_rejections and asked.template_arguments == {"a": 1}


@pytest.mark.parametrize(
    ("prompt", "found"),
    [
        ("a", ["a"]),
        (["a", ""], ["a", ""]),
        ([1, 2], [[1, 2]]),
        ([[1], [2, 3]], [[1], [2, 3]]),
        (["a", [1]], ["a", [1]]),
    ],
)
def test_prompts_are_texts_or_token_ids(prompt: Any, found: list[Any]) -> None:
    assert read_request(TEXT | {"prompt": prompt}, is_chat=False).prompts == found


def test_token_ids_are_of_the_vocabulary() -> None:
    (prompt,) = read_request(TEXT | {"prompt": [1, 2]}, is_chat=False).prompts
    assert token_ids_of(prompt, 3) == [1, 2] and token_ids_of("text", 3) is None
    with pytest.raises(RequestError, match="vocabulary of 2"):
        token_ids_of(prompt, 2)


def test_parts_of_a_message_are_one_text() -> None:
    parts = [{"type": "text", "text": "hel"}, {"type": "text", "text": "lo"}]
    given = CHAT | {"messages": [{"role": "developer", "content": "be kind"}, {"role": "user", "content": parts}]}
    (messages,) = read_request(given, is_chat=True).prompts
    assert messages == [{"role": "system", "content": "be kind"}, {"role": "user", "content": "hello"}]


@pytest.mark.parametrize(
    ("changed", "param", "sentence"),
    [
        ({"model": None}, "model", "model is missing."),
        ({"model": 3}, "model", "model must be a text, not a number."),
        ({"messages": []}, "messages", "messages must be a list of at least one message."),
        ({"messages": ["x"]}, "messages[0]", "must be an object, not a text."),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages[0].role", "must be one of system"),
        ({"messages": [{"role": "user", "content": None}]}, "messages[0].content", "must be a text, not null."),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, "messages[0].content", "in UTF-8."),
        ({"messages": [{"role": "user", "content": "x", "tool_calls": [1]}]}, "messages[0]", "does not read"),
        ({"temperature": 2.5}, "temperature", "between 0 and 2, not 2.5."),
        ({"temperature": True}, "temperature", "must be a number, not true or false."),
        ({"temperature": float("inf")}, "temperature", "between 0 and 2"),
        ({"top_p": 0}, "top_p", "above 0 and at most 1"),
        ({"n": 1.0}, "n", "must be a whole number, not 1.0."),
        ({"n": 1000}, "n", "between 1 and 128."),
        ({"max_tokens": 0}, "max_tokens", "between 1"),
        ({"max_tokens": 3, "max_completion_tokens": 4}, "max_tokens", "Give only one of"),
        ({"seed": 2**63}, "seed", "must be between"),
        ({"stop": ["a"] * 5}, "stop", "at most 4 texts"),
        ({"stop": ""}, "stop", "between 1 and 256 characters"),
        ({"top_logprobs": 3}, "top_logprobs", "needs logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "between 0 and 20"),
        ({"stream": "yes"}, "stream", "must be true or false"),
        ({"max_kl": -1}, "max_kl", "between 0"),
        ({"strength": {"safe": 10**400}}, "strength of 'safe'", "must be between"),
        ({"strength": 101}, "strength", "must be between 0 and 100"),
        ({"max_kll": 3}, "max_kll", "did you mean max_kl?"),
        ({"tools": [{"type": "function"}]}, "tools", "does not support tools."),
        ({"presence_penalty": 0.5}, "presence_penalty", "does not support presence_penalty."),
        ({"presence_penalty": False}, "presence_penalty", "does not support presence_penalty."),
        ({"chat_template_kwargs": {"chat_template": "x"}}, "chat_template_kwargs", "without chat_template"),
    ],
)
def test_a_mistake_is_a_sentence_about_its_field(changed: dict[str, Any], param: str, sentence: str) -> None:
    with pytest.raises(RequestError) as raised:
        read_request(CHAT | changed, is_chat=True)
    assert raised.value.param == param and sentence in raised.value.message


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b"null", b'{"a": NaN}', b'{"a": 1e5', b"\xff", b"[" * 100_000, b'{"a":' * 50_000]
)
def test_a_body_that_is_no_object_is_a_sentence(body: bytes) -> None:
    with pytest.raises(RequestError, match=r"^The body .*\.$"):
        parse_json(body)


def test_keys_are_one_a_line() -> None:
    assert read_keys("# ours\none\n\n two \n", "keys.txt") == ("one", "two")
    for text in ("", "# none\n", "with space\n", "schlüssel\n"):
        with pytest.raises(Exception, match=r"keys\.txt holds"):
            read_keys(text, "keys.txt")
