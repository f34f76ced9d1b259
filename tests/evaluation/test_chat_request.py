"""A judge's server that answers nonsense: a sentence or a retry, never a traceback, a hang, an infinite cost or the key."""

from __future__ import annotations

import json
import logging
import math
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from frugalign.base.errors import FrugalignError
from frugalign.evaluation.judges.chat_request import ChatServer, Failure, check_address
from frugalign.evaluation.judges.openai_server import LLMJudge, LLMJudgeOptions

KEY = 'sk-"se/cret"'
Reply = Callable[[socket.socket], None]


def http(content: bytes, status: str = "200 OK", headers: str = "") -> bytes:
    return f"HTTP/1.1 {status}\r\n{headers}Content-Length: {len(content)}\r\n\r\n".encode() + content


def chat(content: Any = "A", usage: Any = None) -> bytes:
    return http(json.dumps({"choices": [{"message": {"content": content}}], "usage": usage}).encode())


class RawServer:
    """Sends bytes, whatever they are, in answer to any request."""

    def __init__(self) -> None:
        self.reply: bytes | Reply = chat()
        self.asked = 0
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}/v1"
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            self.asked += 1
            threading.Thread(target=self._answer, args=[connection], daemon=True).start()

    def _answer(self, connection: socket.socket) -> None:
        with connection:
            try:
                request = b""
                while b"\r\n\r\n" not in request:
                    request += connection.recv(65536)
                if callable(self.reply):
                    self.reply(connection)
                else:
                    connection.sendall(self.reply)
                connection.shutdown(socket.SHUT_WR)
                while connection.recv(65536):  # closing with unread bytes would reset the connection
                    pass
            except OSError:
                return


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[RawServer]:
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setenv("JUDGE_KEY", KEY)
    running = RawServer()
    yield running
    running.listener.close()


def judge_at(server: RawServer, **options: Any) -> LLMJudge:
    given = {"base_url": server.url, "model": "m", "retries": 0, "api_key_env": "JUDGE_KEY", "timeout": 0.5, **options}
    return LLMJudge(LLMJudgeOptions(**given), sleep=lambda _: None)


def drip(connection: socket.socket) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
    for _ in range(100):
        connection.sendall(b" ")
        time.sleep(0.05)


def drip_headers(connection: socket.socket) -> None:
    for _ in range(100):
        connection.sendall(b"H")
        time.sleep(0.05)


NONSENSE: dict[str, bytes | Reply] = {
    "deep": http(b'{"choices":' + b"[" * 200_000),
    "not utf-8": http(b'{"choices": [{"message": {"content": "\xff"}}]}'),
    "not json": http(b"<html>"),
    "nothing": b"",
    "no status": b"nonsense\r\n\r\n",
    "a status of words": b"HTTP/1.1 many OK\r\n\r\n",
    "endless": http(b"[" * ((1 << 22) + 10)),
    "many headers": b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 500 + b"\r\n",
    "a long header": b"HTTP/1.1 200 OK\r\nA: " + b"b" * 100_000 + b"\r\n\r\n",
    "cut": b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n{",
    "a negative length": b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\n{}",
    "chunks of no length": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    "a list": http(b"[]"),
    "a number": http(b"3"),
    "null": http(b"null"),
    "no choices": http(b'{"choices": []}'),
    "choices of text": http(b'{"choices": "A"}'),
    "drip": drip,
    "drip of headers": drip_headers,
}


@pytest.mark.parametrize("reply", NONSENSE.values(), ids=NONSENSE)
def test_nonsense_is_a_failure_in_time(server: RawServer, reply: bytes | Reply) -> None:
    server.reply = reply
    began = time.monotonic()
    try:
        assert judge_at(server).compare(["p"], ["a"], ["b"]) == [None]
    except FrugalignError as error:
        assert "\n" not in str(error) and len(str(error)) < 400
    assert time.monotonic() - began < 3


@pytest.mark.parametrize(
    "usage",
    [
        {"prompt_tokens": math.inf, "completion_tokens": 1},
        {"prompt_tokens": math.nan, "completion_tokens": 1},
        {"prompt_tokens": -5, "completion_tokens": 1},
        {"prompt_tokens": 10**30, "completion_tokens": 1},
        {"prompt_tokens": "many", "completion_tokens": 1},
        {"prompt_tokens": True, "completion_tokens": 1.5},
        {"prompt_tokens": [1], "completion_tokens": {}},
        [1, 2],
        "free",
    ],
)
def test_a_count_that_cannot_be_meant_costs_the_most(server: RawServer, usage: Any) -> None:
    server.reply = chat("A", usage)
    judge = judge_at(server, prompt_price=10.0, completion_price=10.0, max_cost=1.0)
    assert judge.compare(["p"], ["a"], ["b"]) == [1.0]
    assert judge.counts["cost"] == judge.options.price(len(judge._body("p", "a", "b")) + 100, 512)
    assert judge.counts["prompt_tokens"] == judge.counts["completion_tokens"] == 0


@pytest.mark.parametrize("content", [None, 3, ["A"], {"text": "A"}, "", "\ud800"])
def test_a_reply_without_text_has_no_verdict(server: RawServer, content: Any) -> None:
    server.reply = chat(content)
    judge = judge_at(server)
    assert judge.compare(["p"], ["a"], ["b"]) == [None] and judge.counts["unparsed"] == 1


ECHOES: dict[str, bytes] = {
    "in the status line": f"HTTP/1.1 999 {KEY}\r\n\r\n".encode(),
    "in place of a status line": f"Bearer {KEY}\r\n\r\n".encode(),
    "in the reason": f"HTTP/1.1 401 {KEY}\r\nContent-Length: 0\r\n\r\n".encode(),
    "in a body": http(f"Bearer {KEY}".encode(), "500 no"),
    "in a body as JSON": http(json.dumps({"error": {"message": f"wrong key {KEY}"}}).encode(), "401 no"),
    "in JSON that is another": http(json.dumps({"detail": KEY}).encode(), "400 no"),
    "in a redirect": http(b"", "302 Found", f"Location: http://127.0.0.1/?key={KEY}\r\n"),
    "quoted in a body": http(b"key=sk-%22se/cret%22 or sk-%22se%2Fcret%22", "403 no"),
    "in a chunk's length": f"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{KEY}\r\n".encode(),
    "in the reply": chat(f"{KEY} is the key. A"),
}


@pytest.mark.parametrize("reply", ECHOES.values(), ids=ECHOES)
def test_an_echo_of_the_key_reaches_nobody(
    server: RawServer, reply: bytes, tmp_path: Any, caplog: pytest.LogCaptureFixture
) -> None:
    server.reply = reply
    said, cache = "", tmp_path / "replies.jsonl"
    with caplog.at_level(logging.DEBUG):
        try:
            judge_at(server, cache_path=cache).compare(["p"], ["a"], ["b"])
        except FrugalignError as error:
            said = str(error)
            while error is not None:  # with FRUGALIGN_DEBUG the whole chain is printed
                said += repr(error)
                error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)  # type: ignore[assignment]
    for text in (said, caplog.text, cache.read_text() if cache.exists() else ""):
        assert "cret" not in text


def test_every_form_of_a_key_is_hidden() -> None:
    server = ChatServer("http://localhost", "m", "ab/cd", 1.0)
    assert server.hide_key("ab/cd ab%2Fcd ab/CD YWIvY2Q=") == "… … ab/CD …"
    assert ChatServer("http://localhost", "m", "", 1.0).hide_key("abc") == "abc"


def test_a_slow_answer_is_tried_again(server: RawServer) -> None:
    server.reply = drip
    with pytest.raises(Failure, match=r"^no answer in 0\.3 s$") as raised:
        ChatServer(server.url, "m", "", 0.3).ask(b"{}")
    assert raised.value.again and raised.value.may_be_billed


@pytest.mark.parametrize("wait", ["inf", "nan", "-3", "1e400", "tomorrow", ""])
def test_an_absurd_wait_is_not_waited_for(server: RawServer, wait: str) -> None:
    server.reply = http(b"", "429 no", f"Retry-After: {wait}\r\n")
    slept: list[float] = []
    options = LLMJudgeOptions(base_url=server.url, model="m", retries=1, timeout=1.0)
    assert LLMJudge(options, sleep=slept.append).compare(["p"], ["a"], ["b"]) == [None]
    assert slept == [1.0]


@pytest.mark.parametrize(
    "url",
    [
        *("file:///etc/passwd", "http://key@host/v1", "http://host:port/v1", "http://[::1", "http://", "host/v1", ""),
        *(
            "http://host/v1?key=sk-1",
            "http://host/v1#a",
            "http://host/\n",
            "http://ho st/v1",
            "http://hôst/v1",
            None,
            3,
        ),
    ],
)
def test_an_address_that_cannot_be_meant(url: Any) -> None:
    assert check_address(url) is not None
    with pytest.raises(FrugalignError, match=r"^base_url must be http"):
        LLMJudgeOptions(base_url=url, model="m")
    assert check_address("https://api.example.org/v1") is check_address("http://[::1]:8000/v1") is None


def test_a_host_that_is_no_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "*")
    options = LLMJudgeOptions(base_url="http://a..b/v1", model="m", retries=0)
    with pytest.raises(FrugalignError, match=r"^No server answers at http://a\.\.b/v1/chat/completions: "):
        LLMJudge(options).compare(["p"], ["a"], ["b"])


@pytest.mark.parametrize(
    "options",
    [
        *({"model": value} for value in (None, 3, "", "a\x1b", ["m"])),
        *({"timeout": value} for value in (0, math.inf, 1e12, "1", None, True)),
        *({"concurrency": value} for value in (0, 10**6, 1.5, None)),
        *({"prompt_price": value} for value in (-1, math.nan, 10**400, "1")),
        {"retries": 10**9},
        {"max_requests": -1},
        {"criterion": None},
        {"criterion": "a\0"},
        {"api_key_env": "a\0"},
        {"api_key_env": 3},
        {"cache_path": "c" * 300},
    ],
)
def test_settings_that_cannot_be_meant(options: dict[str, Any]) -> None:
    with pytest.raises(FrugalignError, match=f"^{next(iter(options))} is .*; it must be "):
        LLMJudgeOptions(**{"base_url": "http://localhost/v1", "model": "judge", **options})
