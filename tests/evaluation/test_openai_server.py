"""Judges of pairs behind a fake chat server on this machine."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from frugalign.base.errors import FrugalignError
from frugalign.evaluation.judges.openai_server import LLMJudge, LLMJudgeOptions
from frugalign.evaluation.judges.pairwise import both_orders

PROMPTS = ["Wie geht’s, 日本?", "Name a colour.", "Add 2 and 2."]
GOOD = ["Gut, danke — 元気です 🙂", "a good blue", "good: 4"]
BAD = ["no", "bad\u2028answer", "bad: 5"]

Answer = tuple[int, Any]


def chat(text: str, prompt_tokens: int = 100, completion_tokens: int = 1) -> dict[str, Any]:
    usage = {"prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens}
    return {"choices": [{"message": {"role": "assistant", "content": text}}], "usage": usage}


def first_is_good(question: str) -> bool:
    """What an honest judge sees: whether answer A is one of the good ones."""
    return any(f"Answer A:\n{good}" in question for good in GOOD)


def honest(question: str, nth: int) -> Answer:
    return 200, chat("They differ.\n**A**" if first_is_good(question) else "They differ.\n**B**")


class Server:
    """Answers POSTs by `answer(question, number of the request)`, and remembers them."""

    def __init__(self) -> None:
        self.answer: Callable[[str, int], Answer] = honest
        self.asked: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        server, lock = self, threading.Lock()

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with lock:
                    server.asked.append(body)
                    server.headers.append({**self.headers, "path": self.path})
                    nth = len(server.asked)
                status, content = server.answer(body["messages"][-1]["content"], nth)
                data = content if isinstance(content, bytes) else json.dumps(content).encode()
                self.send_response(status)
                if status == 429:
                    self.send_header("Retry-After", "7")
                if status == 302:
                    self.send_header("Location", f"http://127.0.0.1:{server.port}/elsewhere")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: Any) -> None: ...

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.handle_error = lambda *_: None  # a client that did not wait for its answer
        self.port = self.http.server_port
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "*")
    running = Server()
    yield running
    running.http.shutdown()
    running.http.server_close()


class Clock:
    """Takes the place of `time.sleep`."""

    def __init__(self) -> None:
        self.slept: list[float] = []

    def __call__(self, seconds: float) -> None:
        self.slept.append(seconds)


def judge_at(server: Server, clock: Clock | None = None, **options: Any) -> LLMJudge:
    return LLMJudge(
        LLMJudgeOptions(**{"base_url": server.url, "model": "judge", "concurrency": 2, **options}),
        sleep=clock or Clock(),
    )


# --- the server's verdicts


def test_verdicts_and_what_is_asked(server: Server) -> None:
    """Unicode goes there and back; no key is sent where none is named, though the machine may have one saved."""
    judge = judge_at(server, max_tokens=9)
    assert judge.compare(PROMPTS, GOOD, BAD) == [1.0, 1.0, 1.0]
    assert judge.compare(PROMPTS, BAD, GOOD) == [0.0, 0.0, 0.0]
    assert judge.counts == {
        "requests": 6, "cached": 0, "failed": 0, "unparsed": 0, "prompt_tokens": 600, "completion_tokens": 6, "cost": 0.0,
    }  # fmt: skip
    body = server.asked[0]
    assert (body["model"], body["max_tokens"], body["temperature"]) == ("judge", 9, 0.0)
    assert {headers["path"] for headers in server.headers} == {"/v1/chat/completions"}
    assert not any("Authorization" in headers for headers in server.headers)
    texts = [body["messages"][-1]["content"] for body in server.asked]
    assert any("元気です 🙂" in text for text in texts) and any("bad\u2028answer" in text for text in texts)


def test_no_saved_token_is_sent(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    monkeypatch.setenv("JUDGE_KEY", "mine")
    judge_at(server).compare(PROMPTS[:1], GOOD[:1], BAD[:1])
    judge_at(server, api_key_env="JUDGE_KEY").compare(PROMPTS[:1], GOOD[:1], BAD[:1])
    assert "secret" not in str(server.headers)
    assert server.headers[1]["Authorization"] == "Bearer mine"


def test_an_honest_judge_does_not_contradict_itself(server: Server) -> None:
    found = both_orders(judge_at(server), PROMPTS, [GOOD[0], BAD[1], GOOD[2]], [BAD[0], GOOD[1], BAD[2]])
    assert found.preferences == [1.0, 0.0, 1.0] and found.contradictions == 0.0


def test_a_judge_that_prefers_a_place_gives_ties(server: Server) -> None:
    """It says A whatever stands there, except for one prompt that it judges honestly: 2 of 3 contradict."""
    server.answer = lambda question, nth: honest(question, nth) if "2 and 2" in question else (200, chat("A"))
    found = both_orders(judge_at(server), PROMPTS, GOOD, BAD)
    assert found.preferences == [0.5, 0.5, 1.0] and found.contradictions == pytest.approx(2 / 3)


def test_an_answer_without_a_verdict(server: Server) -> None:
    def garbage(question: str, nth: int) -> Answer:
        return (200, chat("I like them both!")) if "colour" in question else honest(question, nth)

    server.answer = garbage
    judge = judge_at(server)
    found = both_orders(judge, PROMPTS, GOOD, BAD)
    assert found.preferences == [1.0, None, 1.0] and found.contradictions == 0.0
    assert judge.counts["unparsed"] == 2 and judge.counts["failed"] == 0


# --- failures


def test_a_busy_server_is_asked_again(server: Server) -> None:
    """429 asks for 7 s, more than the 1 s of the first pause; then 503, then an answer."""
    replies: list[Answer] = [(429, {"error": {"message": "slow down"}}), (503, b"")]
    server.answer = lambda question, nth: replies[nth - 1] if nth <= 2 else honest(question, nth)
    clock = Clock()
    judge = judge_at(server, clock, concurrency=1)
    assert judge.compare(PROMPTS[:1], GOOD[:1], BAD[:1]) == [1.0]
    assert clock.slept == [7.0, 2.0] and judge.counts["requests"] == 3 and judge.counts["failed"] == 0


def test_a_broken_server_loses_the_verdicts_and_no_more(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    server.answer = lambda question, nth: (500, b"oops") if "colour" in question else honest(question, nth)
    clock = Clock()
    judge = judge_at(server, clock, retries=3)
    with caplog.at_level(logging.WARNING):
        assert judge.compare(PROMPTS, GOOD, BAD) == [1.0, None, 1.0]
    assert clock.slept == [1.0, 2.0, 4.0]
    assert judge.counts["failed"] == 1 and judge.counts["requests"] == 2 + 4
    assert [record.message for record in caplog.records] == ["1 of 3 comparisons got no answer: HTTP 500, oops."]
    server.answer = lambda question, nth: (500, b"")
    assert judge_at(server).compare(PROMPTS, GOOD, BAD) == [None, None, None]


def test_a_server_that_stays_broken_is_left_alone(server: Server) -> None:
    server.answer = lambda question, nth: (500, b"")
    judge = judge_at(server, retries=0, concurrency=1)
    assert judge.compare([str(n) for n in range(50)], ["x"] * 50, ["y"] * 50) == [None] * 50
    assert judge.counts["requests"] == 20 and judge.counts["failed"] == 50


def test_failures_now_and_then_do_not_end_a_call(server: Server) -> None:
    """Every second request fails, 30 of 60: never 20 in a row."""
    server.answer = lambda question, nth: honest(question, nth) if nth % 2 else (500, b"")
    verdicts = judge_at(server, retries=0, concurrency=1).compare([str(n) for n in range(60)], ["x"] * 60, ["y"] * 60)
    assert verdicts == [0.0, None] * 30


def test_a_server_that_is_lost_later_costs_verdicts_only(server: Server) -> None:
    judge = judge_at(server, retries=1)
    assert judge.compare(PROMPTS, GOOD, BAD) == [1.0] * 3
    server.answer = lambda question, nth: (400, b"")
    assert judge.compare(PROMPTS, BAD, GOOD) == [None] * 3
    server.http.shutdown()
    server.http.server_close()
    assert judge.compare(PROMPTS, BAD, GOOD) == [None] * 3


def test_a_slow_server(server: Server) -> None:
    def slow(question: str, nth: int) -> Answer:
        time.sleep(0.5 if nth == 1 else 0)
        return honest(question, nth)

    server.answer = slow
    judge = judge_at(server, timeout=0.2)
    assert judge.compare(PROMPTS[:1], GOOD[:1], BAD[:1]) == [1.0]
    assert judge.counts["requests"] == 2


@pytest.mark.parametrize(
    ("status", "words"),
    [(401, "asks for a key"), (404, "knows no such model"), (402, "asks for payment"), (302, "moved")],
)
def test_what_the_user_can_mend_is_said_at_once(server: Server, status: int, words: str) -> None:
    server.answer = lambda question, nth: (status, {"error": {"message": "No such thing."}})
    clock = Clock()
    with pytest.raises(FrugalignError, match=words) as raised:
        judge_at(server, clock, concurrency=1).compare(PROMPTS, GOOD, BAD)
    assert len(server.asked) == 1 and clock.slept == []
    assert "\n" not in str(raised.value) and str(raised.value).endswith(f"HTTP {status}, No such thing.")
    assert all(headers["path"] == "/v1/chat/completions" for headers in server.headers)


def test_a_refused_key_is_not_repeated(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_KEY", "sk-12345")
    server.answer = lambda question, nth: (401, {"error": {"message": "Incorrect key: sk-12345"}})
    with pytest.raises(FrugalignError, match="refuses the key") as raised:
        judge_at(server, api_key_env="JUDGE_KEY").compare(PROMPTS, GOOD, BAD)
    assert "12345" not in str(raised.value)


def test_no_server(server: Server) -> None:
    clock = Clock()
    options = LLMJudgeOptions(base_url="http://127.0.0.1:9", model="judge", retries=2)
    with pytest.raises(FrugalignError, match=r"No server answers at http://127\.0\.0\.1:9/chat/completions"):
        LLMJudge(options, sleep=clock).compare(PROMPTS[:1], GOOD[:1], BAD[:1])
    assert clock.slept == [1.0, 2.0]


def test_one_comparison_that_is_refused(server: Server) -> None:
    """Too long for the judge, say: not asked again, the others go on. Where everything is refused the server's words are an error."""

    def strict(question: str, nth: int) -> Answer:
        return (400, {"error": {"message": "too long"}}) if "colour" in question else honest(question, nth)

    server.answer = strict
    judge = judge_at(server)
    assert judge.compare(PROMPTS, GOOD, BAD) == [1.0, None, 1.0] and judge.counts["requests"] == 3
    for content in (b"<html>", {"choices": []}):
        server.answer = lambda question, nth, content=content: (200, content)
        with pytest.raises(FrugalignError, match="takes no request: its reply is not a chat completion"):
            judge_at(server).compare(PROMPTS, GOOD, BAD)


@pytest.mark.parametrize(
    "options",
    [
        {"base_url": "file:///etc/passwd"},
        {"base_url": "http://key@host/v1"},
        {"base_url": "http://host:port/v1"},
        {"concurrency": 0},
        {"max_cost": 1.0},
        {"prompt_price": -1.0},
        {"timeout": float("inf")},
        {"temperature": float("nan")},
    ],
)
def test_options_that_cannot_be_meant(options: dict[str, Any]) -> None:
    with pytest.raises(FrugalignError):
        LLMJudgeOptions(**{"base_url": "http://localhost/v1", "model": "judge", **options})


def test_a_key_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    with pytest.raises(FrugalignError, match="NO_SUCH_KEY"):
        LLMJudge(LLMJudgeOptions(base_url="http://localhost/v1", model="judge", api_key_env="NO_SUCH_KEY"))


# --- caps


def test_the_number_of_requests_is_capped(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    judge = judge_at(server, max_requests=2)
    with caplog.at_level(logging.WARNING):
        first = judge.compare(PROMPTS, GOOD, BAD)
        second = judge.compare(PROMPTS, BAD, GOOD)
    assert sorted(map(str, first)) == ["1.0", "1.0", "None"] and second == [None] * 3
    assert len(server.asked) == 2 and judge.counts["failed"] == 4
    assert [record.message.split(":")[0] for record in caplog.records] == [
        "The judge judge has reached max_requests = 2"
    ]
    assert judge.compare(PROMPTS, GOOD, BAD) == first, "what was answered is still answered"


@pytest.mark.parametrize("concurrency", [1, 8])
def test_the_cost_is_capped(server: Server, caplog: pytest.LogCaptureFixture, concurrency: int) -> None:
    """A verdict costs (100·10 + 10·100)/1e6 = 0.002. A request is let through at the price of its bytes and of max_tokens: some of the 40 are
    paid for, never more than the cap; the requests under way at once do not pass it together."""
    server.answer = lambda question, nth: (200, chat("A", 100, 10))
    judge = judge_at(
        server, max_cost=0.05, prompt_price=10.0, completion_price=100.0, max_tokens=10, concurrency=concurrency
    )
    dearest = judge.options.price(len(judge._body("39", "x", "y")) + 100, 10)
    with caplog.at_level(logging.WARNING):
        verdicts = judge.compare([str(n) for n in range(40)], ["x"] * 40, ["y"] * 40)
    n_paid = sum(verdict is not None for verdict in verdicts)
    assert judge.counts["cost"] == pytest.approx(0.002 * n_paid)
    assert 0.05 - dearest < judge.counts["cost"] <= 0.05
    assert len(server.asked) == n_paid and len(caplog.records) == 1 and "max_cost = 0.05" in caplog.text


def test_an_answer_that_does_not_say_what_it_used_counts_as_the_dearest(server: Server) -> None:
    server.answer = lambda question, nth: (200, {"choices": [{"message": {"content": "A"}}]})
    judge = judge_at(server, max_cost=1.0, prompt_price=10.0)
    judge.compare(PROMPTS[:1], GOOD[:1], BAD[:1])
    assert judge.counts["cost"] == judge.options.price(len(judge._body(PROMPTS[0], GOOD[0], BAD[0])) + 100, 512)


# --- the cache


def test_a_second_run_asks_nothing(server: Server, tmp_path: Path) -> None:
    cache = tmp_path / "runs" / "judge.jsonl"
    first = judge_at(server, cache_path=cache).compare(PROMPTS, GOOD, BAD)
    again = judge_at(server, cache_path=str(cache), max_requests=0)
    assert again.compare(PROMPTS, GOOD, BAD) == first == [1.0] * 3
    assert len(server.asked) == 3 and again.counts["cached"] == 3 and again.counts["requests"] == 0
    for other in ({"model": "another"}, {"max_tokens": 7}, {"temperature": 1.0}, {"criterion": "Which is shorter?"}):
        assert judge_at(server, cache_path=cache, max_requests=0, **other).compare(PROMPTS, GOOD, BAD) == [None] * 3


def test_equal_comparisons_are_asked_once(server: Server) -> None:
    assert judge_at(server).compare(PROMPTS[:1] * 5, GOOD[:1] * 5, BAD[:1] * 5) == [1.0] * 5
    assert len(server.asked) == 1


def test_a_line_cut_by_a_kill_is_left_out(server: Server, tmp_path: Path) -> None:
    """Cut within the last line, and a foreign line cut within a character: both are asked again, and what is appended stays readable."""
    cache = tmp_path / "judge.jsonl"
    judge_at(server, cache_path=cache, concurrency=1).compare(PROMPTS, GOOD, BAD)
    whole = cache.read_bytes()
    cache.write_bytes(whole[:-20])
    judge = judge_at(server, cache_path=cache)
    assert judge.compare(PROMPTS, GOOD, BAD) == [1.0] * 3
    assert judge.counts["cached"] == 2 and judge.counts["requests"] == 1
    cache.write_bytes(cache.read_bytes() + '{"key": "日'.encode()[:-1])
    judge = judge_at(server, cache_path=cache)
    assert judge.compare(PROMPTS, GOOD, BAD) == [1.0] * 3 and judge.counts["cached"] == 3


def test_what_was_answered_before_an_error_is_kept(server: Server, tmp_path: Path) -> None:
    cache = tmp_path / "judge.jsonl"
    server.answer = lambda question, nth: honest(question, nth) if nth <= 2 else (401, b"")
    with pytest.raises(FrugalignError):
        judge_at(server, cache_path=cache, concurrency=1).compare(PROMPTS, GOOD, BAD)
    assert len(cache.read_text(encoding="utf-8").splitlines()) == 2
