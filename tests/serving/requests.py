"""Malformed requests by the thousand: `python -m tests.serving.requests --cases 10000`.

A case is a right request with a few things wrong: a field of another type, an odd number, an unknown field, bytes that
are cut or damaged, another path. `check` says what is wrong with the server's answer to it.
"""

from __future__ import annotations

import argparse
import http.client
import json
import random
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ODD: list[Any] = [
    *(None, True, False, 0, -1, 1, 2, 10**9, 10**400, -(10**30), 0.5, -0.5, 1e308, -1e-320, 2**63, 2**64),
    *(
        "",
        " ",
        "base",
        "base@",
        "base@safe:",
        "base@safe:nan",
        "base@safe:-1",
        "base@safe+safe",
        "base@@safe",
        "@",
        "\0",
    ),
    *("\ud800", "x" * 5000, "日本", "<script>", "base@safe:1e9", "base@safe:0.5+terse", "%s%n", "../../etc/passwd"),
    *([], {}, [[]], [{}], [None], [1], [-1], [10**9], ["a", 1], [["a"]], [""] * 200, {"a": 1}, {"": None}),
    *({"safe": 1}, {"safe": -1}, {"safe": "x"}, {"safe": None}, {"unknown": 1}, {"role": "user"}),
    *(
        [{"role": "user"}],
        [{"role": "user", "content": 1}],
        [{"role": "tool", "content": "x"}],
        [{"role": [], "content": ""}],
    ),
    *([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://x"}}]}],),
    *([{"role": "assistant", "content": "only me"}], [{"role": "system", "content": "s"}] * 3, [{"content": "x"}]),
    *({"include_usage": 1}, {"include_usage": True}, {"type": "json_object"}, {"enable_thinking": False}),
]
FIELDS = [
    *(
        "model",
        "messages",
        "prompt",
        "n",
        "max_tokens",
        "max_completion_tokens",
        "temperature",
        "top_p",
        "seed",
        "stop",
    ),
    *("logprobs", "top_logprobs", "stream", "stream_options", "strength", "max_kl", "show_rejections", "echo", "tools"),
    *(
        "chat_template_kwargs",
        "response_format",
        "logit_bias",
        "best_of",
        "suffix",
        "max_kll",
        "user",
        "",
        "constructor",
    ),
]
PATHS = ["/v1/chat/completions", "/v1/completions"]
STATUSES = {200, 400, 401, 404, 405, 408, 413, 415, 422, 429, 503}


@dataclass(frozen=True)
class Case:
    """One HTTP request."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes


def case(number: int) -> Case:
    """The case of a number, always the same."""
    drawn = random.Random(number)
    path = drawn.choice(PATHS)
    given: dict[str, Any] = {"model": "base@safe:0.7", "max_tokens": 2, "seed": number}
    given |= {"messages": [{"role": "user", "content": "hello"}]} if "chat" in path else {"prompt": "hello"}
    for _ in range(drawn.choice([1, 1, 2, 3])):
        name = drawn.choice(FIELDS)
        given[name] = drawn.choice(ODD)
    if drawn.random() < 0.1:
        given.pop(drawn.choice(sorted(given)))
    body = json.dumps(given, ensure_ascii=drawn.random() < 0.5).encode("utf-8", "surrogatepass")
    method, headers = "POST", {"Content-Type": "application/json"}
    change = drawn.random()
    if change < 0.05:
        body = body[: drawn.randrange(len(body))]
    elif change < 0.1:
        place = drawn.randrange(len(body))
        body = body[:place] + bytes([drawn.randrange(256)]) + body[place + 1 :]
    elif change < 0.14:
        body = drawn.choice(
            [b"", b"[]", b"null", b"1", b"NaN", b'{"a":NaN}', b"[" * 50_000, b"{" * 9, b"\xff\xfe", b'"x"']
        )
    elif change < 0.16:
        headers = drawn.choice(
            [{}, {"Content-Type": "text/plain"}, {"Content-Type": "application/json; charset=utf-16"}]
        )
    elif change < 0.18:
        method = drawn.choice(["GET", "PUT", "DELETE", "OPTIONS", "PATCH"])
    elif change < 0.2:
        path = drawn.choice(
            [
                "/v1",
                "/v1/nothing",
                "/v1/models/none",
                "/v1/models/base@safe:x",
                "//",
                "/v1/models/%00",
                "/v1/models/" + "a" * 3000,
            ]
        )
        method, body = "GET", b""
    elif change < 0.21:
        body = b" " * 200_000
    return Case(method, path, headers, body)


def check(port: int, asked: Case) -> str | None:
    """What is wrong with the answer, or None."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    try:
        connection.request(asked.method, asked.path, asked.body, asked.headers)
        response = connection.getresponse()
        content, kind = response.read(), response.headers.get_content_type()
    except (OSError, http.client.HTTPException) as error:
        return f"no answer: {error!r}"
    finally:
        connection.close()
    if response.status not in STATUSES:
        return f"status {response.status}: {content[:300]!r}"
    if kind == "text/event-stream":
        events = [line.removeprefix("data: ") for line in content.decode().split("\n\n") if line]
        return (
            None
            if all(line == "[DONE]" or isinstance(json.loads(line), dict) for line in events)
            else "a broken stream"
        )
    found = json.loads(content)
    if response.status == 200:
        return None if "choices" in found or "id" in found else f"an odd answer: {content[:300]!r}"
    error = found.get("error")
    if not isinstance(error, dict) or set(error) != {"message", "type", "param", "code"}:
        return f"not OpenAI's form: {content[:300]!r}"
    sentence = error["message"]
    fits = isinstance(sentence, str) and 0 < len(sentence) < 600 and sentence[-1] in ".?" and "\n" not in sentence
    return None if fits else f"not a sentence: {sentence!r}"


def main() -> int:
    """Send cases to a server over the sandbox, and print what is wrong."""
    parser = argparse.ArgumentParser(prog="python -m tests.serving.requests", description=__doc__)
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--start", type=int, default=0)
    parser.add_argument("--port", type=int, help="Of a server that runs already, with a model called base.")
    args = parser.parse_args()
    from experiments.server_load import toy_proxies

    from frugalign.serving.models import load_served
    from frugalign.serving.running import running
    from frugalign.serving.settings import ServerSettings

    def run(port: int) -> int:
        wrong = 0
        for number in range(args.start, args.start + args.cases):
            said = check(port, case(number))
            if said is not None:
                wrong += 1
                print(f"case {number}: {said}\n  {case(number)}", flush=True)
        print(f"{args.cases} cases, {wrong} answered wrongly")
        return int(wrong > 0)

    if args.port is not None:
        return run(args.port)
    with tempfile.TemporaryDirectory() as folder:
        proxies = toy_proxies("frugalign.sandbox:model", Path(folder))
        served = load_served("frugalign.sandbox:model", proxies, served_name="base")
    with running(served, ServerSettings(max_new_tokens=24, max_body_bytes=100_000)) as url:
        return run(int(url.rpartition(":")[2]))


if __name__ == "__main__":
    sys.exit(main())
