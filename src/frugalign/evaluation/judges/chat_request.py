"""One request to an OpenAI-compatible chat server, over the standard library.

A server may send anything: a body without end, a byte a second, numbers that are none, the key that it was sent. So the
time and the size of a reply are bounded, its values are checked, and the key is taken out of every text.
"""

from __future__ import annotations

import base64
import http.client
import json
import math
import socket
import threading
import time
import urllib.error
import urllib.request
from typing import Any
from urllib.parse import quote, urlsplit

from frugalign.base.errors import FrugalignError
from frugalign.base.parsing import parse_json
from frugalign.base.wording import visible

_USER_ERRORS = {
    401: "refuses the key",
    402: "asks for payment",
    403: "refuses the key",
    404: "knows no such model, or has no chat at this address",
    405: "has no chat at this address",
}
_RETRIED = {408, 409, 425, 429}
_LARGEST_REPLY = 1 << 22
"""Bytes. A verdict takes a few hundred."""
_MOST_TOKENS = 10**9
"""A larger count in `usage` is not believed."""
_LONGEST_MESSAGE = 200
_SHORTEST_KEY = 4
"""Shorter keys are words of the language: they are not searched for in texts."""

Usage = tuple[int, int]
"""Prompt and completion tokens. Both are 0 where the server does not say them."""


class Failure(Exception):
    """A failed request. `again`: a retry may help, after `wait` seconds if the server asks for them."""

    def __init__(
        self, why: str, *, again: bool, wait: float = 0.0, no_server: bool = False, may_be_billed: bool = False
    ) -> None:
        super().__init__(why)
        self.again, self.wait, self.no_server, self.may_be_billed = again, wait, no_server, may_be_billed


class ChatServer:
    """A server's address, a model on it, and the key that it gets.

    Args:
        timeout: seconds until the whole reply must be here.
    """

    def __init__(self, url: str, model: str, key: str, timeout: float) -> None:
        self.url, self.model, self.timeout, self._key = url, model, timeout, key

    def ask(self, body: bytes) -> tuple[str, Usage]:
        """Send a request, and return the reply's text and what it used.

        Raises:
            Failure: this request failed.
            FrugalignError: every request would fail.
        """
        text, usage = _read_reply(self._post(body))
        return self.hide_key(text), usage

    def hide_key(self, text: str) -> str:
        """The text without the key, however a server or a library may have written it."""
        if len(self._key) < _SHORTEST_KEY:
            return text
        forms = {self._key, repr(self._key)[1:-1], json.dumps(self._key)[1:-1], quote(self._key), quote(self._key, "")}
        forms |= {base64.b64encode(self._key.encode()).decode()}
        for form in sorted(forms, key=len, reverse=True):
            text = text.replace(form, "…")
        return text

    def _post(self, body: bytes) -> bytes:
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {self._key}"} if self._key else {})
        began, deadline = time.monotonic(), _Deadline(self.timeout)
        # Errors are raised `from None`: those of the library quote what the server sent, the key included.
        try:
            opener = urllib.request.build_opener(_NoRedirect, deadline.http(), deadline.https())
            request = urllib.request.Request(self.url, body, headers)
            with opener.open(request, timeout=self.timeout) as response:
                content: bytes = response.read(_LARGEST_REPLY + 1)
            if time.monotonic() - began >= self.timeout:
                raise TimeoutError
        except urllib.error.HTTPError as error:
            with error:
                raise self._refusal(error) from None
        except (OSError, http.client.HTTPException, ValueError) as error:  # ValueError: a host that is no name
            reason = getattr(error, "reason", None) or error
            if isinstance(reason, TimeoutError) or time.monotonic() - began >= self.timeout:
                raise Failure(f"no answer in {self.timeout:g} s", again=True, may_be_billed=True) from None
            said = self._shorten(f"{type(reason).__name__}: {reason}")
            raise Failure(said, again=True, no_server=isinstance(error, (urllib.error.URLError, ValueError))) from None
        finally:
            deadline.cancel()
        if len(content) > _LARGEST_REPLY:
            raise Failure(f"its reply is larger than {_LARGEST_REPLY >> 20} MiB", again=False, may_be_billed=True)
        return content

    def _refusal(self, error: urllib.error.HTTPError) -> Exception:
        """What an HTTP status means: for this request, or for all of them."""
        said = self._server_message(error)
        if what := "moved, and is not followed" if 300 <= error.code < 400 else _USER_ERRORS.get(error.code):
            if error.code in (401, 403) and not self._key:
                what = "asks for a key (api_key_env names the environment variable that holds it)"
            return FrugalignError(f"The judge at {self.url} {what}; asked for the model {self.model!r}: {said}.")
        again = error.code in _RETRIED or error.code >= 500
        return Failure(said, again=again, wait=_seconds(error.headers.get("Retry-After")))

    def _server_message(self, error: urllib.error.HTTPError) -> str:
        """The server's error message, shortened and without the key, which some servers repeat."""
        try:
            text = error.read(10_000).decode(errors="replace")
            found = parse_json(text)["error"]
            text = str(found["message"] if isinstance(found, dict) else found)
        except (OSError, http.client.HTTPException):
            text = ""
        except (ValueError, TypeError, KeyError, RecursionError):
            pass  # not OpenAI's form: the text as it is
        text = self._shorten(text)
        return f"HTTP {error.code}, {text}" if text else f"HTTP {error.code}"

    def _shorten(self, text: str) -> str:
        return visible(" ".join(self.hide_key(text).split()))[:_LONGEST_MESSAGE].rstrip(".: ")


def check_address(url: Any) -> str | None:
    """What is wrong with a server's address, in words; else None."""
    needed = "must be http:// or https:// and a host, with no user, key, question mark or blank in it"
    if not isinstance(url, str) or not url.isascii() or not url.isprintable() or set(url) & set(" ?#@\\"):
        return needed
    try:
        parts = urlsplit(url)
        fits = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # the port is not a number, or a bracket is open
        return needed
    return None if fits else needed


class _Deadline:
    """Connections that end `seconds` after they were made, though the server sends a byte now and then."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._timers: list[threading.Timer] = []

    def http(self) -> urllib.request.HTTPHandler:
        """The handler of http:// addresses."""
        connection = self._ending(http.client.HTTPConnection)

        class Handler(urllib.request.HTTPHandler):
            def http_open(self, request: Any) -> Any:
                return self.do_open(connection, request)

        return Handler()

    def https(self) -> urllib.request.HTTPSHandler:
        """The handler of https:// addresses."""
        connection = self._ending(http.client.HTTPSConnection)

        class Handler(urllib.request.HTTPSHandler):
            def https_open(self, request: Any) -> Any:
                return self.do_open(connection, request, context=self._context)  # type: ignore[attr-defined]

        return Handler()

    def cancel(self) -> None:
        """Let connections that are finished be."""
        for timer in self._timers:
            timer.cancel()

    def _ending(self, base: Any) -> Any:
        seconds, timers = self._seconds, self._timers

        class Connection(base):  # type: ignore[misc]
            def connect(self) -> None:
                super().connect()
                timer = threading.Timer(seconds, _end, [self.sock])
                timer.daemon = True
                timers.append(timer)
                timer.start()

        return Connection


def _end(connection: socket.socket) -> None:
    try:
        connection.shutdown(socket.SHUT_RDWR)
    except OSError:
        return  # closed already


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Refuses redirects: following one would turn the POST into a GET and send the key to another server."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


def _read_reply(content: bytes) -> tuple[str, Usage]:
    """The text of a chat completion (empty if missing), and what it used."""
    try:
        answer = parse_json(content)
        text, usage = answer["choices"][0]["message"]["content"], answer.get("usage")
    except (ValueError, TypeError, KeyError, IndexError, AttributeError):
        raise Failure("its reply is not a chat completion", again=False, may_be_billed=True) from None
    return text if isinstance(text, str) else "", _usage(usage)


def _usage(usage: Any) -> Usage:
    """Both counts, or zeros unless both are whole numbers that can be meant."""
    counts = (
        [usage.get(name) or 0 for name in ("prompt_tokens", "completion_tokens")] if isinstance(usage, dict) else []
    )
    if len(counts) < 2 or not all(type(count) is int and 0 <= count <= _MOST_TOKENS for count in counts):
        return 0, 0
    return counts[0], counts[1]


def _seconds(header: str | None) -> float:
    """The seconds in a Retry-After header; 0 for a date or a missing header."""
    try:
        found = float(header or 0)
    except ValueError:
        return 0.0
    return max(0.0, found) if math.isfinite(found) else 0.0
