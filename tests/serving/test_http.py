"""What HTTP needs beyond answers: keys, limits, disconnects, metrics, logs, curl, malformed requests, and the end."""

import http.client
import json
import logging
import os
import signal
import subprocess
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
from tests.serving.requests import case, check

from frugalign.serving.running import address, listen, running, serve
from frugalign.serving.settings import ServerSettings

ASK = {"model": "base@safe:0.7", "prompt": "i want", "seed": 0}


class Slow:
    """A guide that takes its time, so that answers are long."""

    def __init__(self, guide: Any, seconds: float) -> None:
        self.own, self.seconds = guide, seconds

    def guide(self, names: Sequence[str]) -> Any:
        return self.own.guide(names)

    def __call__(self, *arguments: Any) -> Any:
        time.sleep(self.seconds)
        return self.own(*arguments)


@pytest.fixture(scope="session")
def slow(endless: Any) -> Any:
    return replace(endless, guide=Slow(endless.guide, 0.01))


def port_of(url: str) -> int:
    return int(url.rpartition(":")[2])


def send(
    url: str, body: Any, path: str = "/v1/completions", method: str = "POST", **headers: str
) -> tuple[int, Any, dict[str, str]]:
    """Status, body and headers of one request."""
    connection = http.client.HTTPConnection("127.0.0.1", port_of(url), timeout=120)
    given = {"Content-Type": "application/json", **{name.replace("_", "-"): text for name, text in headers.items()}}
    connection.request(method, path, None if body is None else json.dumps(body), given)
    response = connection.getresponse()
    content = response.read()
    connection.close()
    found = json.loads(content) if response.headers.get_content_type() == "application/json" else content.decode()
    return response.status, found, {name.lower(): text for name, text in response.getheaders()}


def metric(url: str, name: str) -> float:
    text = send(url, None, "/metrics", "GET")[1]
    return float(next(line.split()[1] for line in text.splitlines() if line.startswith(f"frugalign_{name} ")))


def wait_for(fits: Any) -> None:
    for _ in range(1000):
        if fits():
            return
        time.sleep(0.02)
    pytest.fail("it did not happen in twenty seconds")


def opened(url: str, **more: Any) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
    """A stream that has begun: five characters are read."""
    connection = http.client.HTTPConnection("127.0.0.1", port_of(url), timeout=60)
    body = json.dumps(ASK | {"stream": True, **more})
    connection.request("POST", "/v1/completions", body, {"Content-Type": "application/json"})
    response = connection.getresponse()
    assert response.read(5) == b"data:"
    return connection, response


def test_keys_are_asked_of_all_but_the_page_and_the_health(served: Any) -> None:
    with running(served, ServerSettings(max_new_tokens=4, api_keys=("one", "two"))) as url:
        for given in ({}, {"Authorization": "Bearer three"}, {"Authorization": "one"}, {"Authorization": "Bearer on"}):
            status, body, headers = send(url, ASK, **given)
            assert (
                status == 401 and body["error"]["code"] == "invalid_api_key" and headers["www-authenticate"] == "Bearer"
            )
        assert send(url, ASK, Authorization="Bearer two")[0] == 200
        assert send(url, ASK, Authorization="bearer one")[0] == 200
        assert [send(url, None, path, "GET")[0] for path in ("/v1/models", "/metrics", "/health", "/")] == [
            401,
            401,
            200,
            200,
        ]


def test_a_full_server_says_when_to_come_back_and_a_client_that_leaves_makes_room(slow: Any) -> None:
    with running(slow, ServerSettings(max_new_tokens=200, max_batch_size=2, max_queue=1)) as url:
        streams = [opened(url)[0], opened(url)[0]]
        with ThreadPoolExecutor(1) as pool:
            waits = pool.submit(send, url, ASK | {"max_tokens": 2})
            wait_for(lambda: metric(url, "waiting") == 1)
            status, body, headers = send(url, ASK)
            assert status == 429 and body["error"]["type"] == "rate_limit_error" and int(headers["retry-after"]) >= 1
            streams[0].close()
            assert waits.result()[0] == 200, "it takes the place of the client that left"
        assert metric(url, "cancelled_total") == 1
        # One that does not stream is noticed too.
        leaver = http.client.HTTPConnection("127.0.0.1", port_of(url), timeout=60)
        leaver.request("POST", "/v1/completions", json.dumps(ASK), {"Content-Type": "application/json"})
        wait_for(lambda: metric(url, "running") == 2)
        leaver.close()
        wait_for(lambda: metric(url, "cancelled_total") == 2)
        streams[1].close()
        wait_for(lambda: metric(url, "running") == 0)


def test_an_answer_is_cut_when_its_time_is_over(slow: Any) -> None:
    with running(slow, ServerSettings(max_new_tokens=200, request_timeout=0.3)) as url:
        status, body, _ = send(url, ASK)
        assert status == 200 and body["choices"][0]["finish_reason"] == "length"
        assert 0 < body["usage"]["completion_tokens"] < 200


def test_a_stopped_server_finishes_what_runs_and_refuses_the_rest(slow: Any) -> None:
    found: dict[str, Any] = {}

    def ask(url: str) -> None:
        found["status"], found["body"], _ = send(url, ASK | {"max_tokens": 30})

    with running(slow, ServerSettings(max_new_tokens=200, shutdown_timeout=20)) as url:
        thread = threading.Thread(target=ask, args=(url,))
        thread.start()
        wait_for(lambda: metric(url, "running") == 1)
    thread.join()
    assert found["status"] == 200 and found["body"]["usage"]["completion_tokens"] == 30
    with pytest.raises(OSError):
        send(url, ASK)


def test_a_stopped_server_does_not_wait_for_ever(slow: Any) -> None:
    with running(slow, ServerSettings(max_new_tokens=200, shutdown_timeout=0.2)) as url:
        _, response = opened(url)
        started = time.monotonic()
    assert time.monotonic() - started < 5
    last = [line for line in response.read().decode().split("\n\n") if line][-1]
    assert json.loads(last.removeprefix("data: "))["error"]["message"] == "The server is stopping."


@pytest.mark.parametrize(
    ("sent", "seconds", "more", "last"),
    [
        (signal.SIGTERM, 20.0, {"max_tokens": 30}, "[DONE]"),
        (signal.SIGINT, 20.0, {"max_tokens": 30}, "[DONE]"),
        (signal.SIGTERM, 0.2, {}, '"message": "The server is stopping."'),
    ],
)
def test_a_signal_while_streaming(slow: Any, sent: signal.Signals, seconds: float, more: Any, last: str) -> None:
    """The stream ends whole or with an error in its form, nobody else is let in, and `serve` returns."""
    socket, seen = listen("127.0.0.1", 0), {}

    def ask() -> None:
        url = address(socket)
        try:
            wait_for(lambda: answers(url))
            connection, response = opened(url, **more)
        finally:
            os.kill(os.getpid(), sent)  # else `serve` would not return
        seen["rest"] = response.read().decode()
        connection.close()
        wait_for(lambda: not answers(url))

    before, thread = signal.getsignal(sent), threading.Thread(target=ask)
    thread.start()
    serve(slow, ServerSettings(max_new_tokens=200, shutdown_timeout=seconds), socket)
    thread.join()
    socket.close()
    pieces = [line.removeprefix("data: ") for line in seen["rest"].strip().split("\n\n")]
    assert last in pieces[-1] and all(isinstance(json.loads(piece), dict) for piece in pieces[1:-1])
    assert signal.getsignal(sent) == before


def answers(url: str) -> bool:
    """Whether a server takes requests there."""
    try:
        return send(url, None, "/health", "GET")[0] == 200
    except OSError:
        return False


@pytest.mark.parametrize("log_requests", [False, True])
def test_no_request_is_in_a_log_unless_asked(served: Any, caplog: pytest.LogCaptureFixture, log_requests: bool) -> None:
    caplog.set_level(logging.DEBUG)
    settings = ServerSettings(max_new_tokens=4, log_requests=log_requests, api_keys=("hush",))
    with running(served, settings) as url:
        send(url, ASK | {"prompt": "xyzzy"}, Authorization="Bearer hush")
        send(url, {"model": "base", "prompt": "xyzzy", "temperature": "xyzzy"}, Authorization="Bearer hush")
    assert ("xyzzy" in caplog.text) == log_requests
    assert "hush" not in caplog.text and "/v1/completions 200" in caplog.text


def test_a_port_in_use_is_one_sentence() -> None:
    with listen("127.0.0.1", 0) as taken:
        taken.listen()
        assert address(taken).startswith("http://127.0.0.1:")
        with pytest.raises(Exception, match=r"^Cannot listen on 127\.0\.0\.1, port \d+: .*\.$"):
            listen("127.0.0.1", taken.getsockname()[1])


def test_curl(url: str) -> None:
    def curl(*arguments: str) -> str:
        return subprocess.run(
            ["curl", "-sS", "--max-time", "60", *arguments], capture_output=True, text=True, check=True
        ).stdout

    body = json.dumps({"model": "base@safe:0.7", "messages": [{"role": "user", "content": "hello"}], "stream": True})
    lines = curl("-N", f"{url}/v1/chat/completions", "-H", "Content-Type: application/json", "-d", body).split("\n\n")
    assert lines[-2:] == ["data: [DONE]", ""] and json.loads(lines[0].removeprefix("data: "))["choices"]
    assert json.loads(curl(f"{url}/v1/completions", "-d", "a=1"))["error"]["type"] == "invalid_request_error"
    assert json.loads(curl(f"{url}/health")) == {"status": "ok"}
    assert "405" in curl("-i", f"{url}/v1/completions").splitlines()[0]
    assert 'frugalign_requests_total{path="/health",status="200"}' in curl(f"{url}/metrics")


@pytest.mark.slow
def test_malformed_requests_are_json_errors(url: str) -> None:
    """The same by the thousand: `python -m tests.serving.requests`."""
    with ThreadPoolExecutor(8) as pool:
        said = list(pool.map(lambda number: check(port_of(url), case(number)), range(300)))
    assert {number: each for number, each in enumerate(said) if each is not None} == {}
    assert send(url, ASK | {"max_tokens": 2})[0] == 200
