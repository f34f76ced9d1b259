"""Text token by token equals the text of all tokens, and nothing of a stop sequence is shown."""

from typing import Any

import pytest
from transformers import AutoTokenizer

from frugalign import sandbox
from frugalign.serving.text import TextStream


class Bytes:
    """A tokenizer whose tokens are bytes. Token 256 is special."""

    def decode(self, ids: list[int], skip_special_tokens: bool) -> str:
        return bytes(token for token in ids if token < 256).decode("utf-8", "replace")


def pieces(tokenizer: Any, ids: list[int], *stop: str) -> tuple[list[str], TextStream]:
    stream, found = TextStream(tokenizer, stop), []
    for token in ids:
        found.append(stream.push(token))
        if stream.stopped:
            return found, stream
    return [*found, stream.finish()], stream


@pytest.mark.parametrize("text", ["plain words", "naïve — 日本語 👩‍👩‍👧", "", "a\ufffdb", "  two  spaces \n"])
def test_pieces_are_whole_characters_and_add_up(text: str) -> None:
    found, _ = pieces(Bytes(), [*text.encode(), 256])
    assert "".join(found) == text
    assert all("\ufffd" not in piece for piece in found) or "\ufffd" in text


def test_bytes_that_are_no_text_are_not_held_back_for_ever() -> None:
    found, _ = pieces(Bytes(), [0xFF] * 40 + list(b"on"))
    assert "".join(found) == "\ufffd" * 40 + "on" and found[10:20] != [""] * 10
    assert "".join(pieces(Bytes(), list("é".encode())[:1])[0]) == "\ufffd", "cut in the middle of a character"


def test_the_sandbox_tokenizer() -> None:
    tokenizer = AutoTokenizer.from_pretrained(sandbox.model)
    text = "Give me a jar to cure the cough of my aunt. I cannot sell you a curse, sorry!"
    ids = tokenizer(text, add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id]
    assert "".join(pieces(tokenizer, ids)[0]) == tokenizer.decode(ids, skip_special_tokens=True)


@pytest.mark.parametrize(
    ("text", "stop", "shown"),
    [
        ("one two three", ("two",), "one "),
        ("one two three", ("three", "two"), "one "),
        ("one two three", ("four",), "one two three"),
        ("aab", ("aaab", "ab"), "a"),
        ("abcabd", ("abd",), "abc"),
        ("end", ("end",), ""),
        ("almost en", ("end",), "almost en"),
        ("日本語", ("本",), "日"),
    ],
)
def test_a_stop_sequence_ends_the_text_before_it(text: str, stop: tuple[str, ...], shown: str) -> None:
    found, stream = pieces(Bytes(), list(text.encode()), *stop)
    assert "".join(found) == shown
    assert stream.stopped == (shown != text)
