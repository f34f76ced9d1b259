"""A language model behind an OpenAI-compatible chat server as pairwise judge: retries, a spending cap, answers kept on the disk.

Nothing is sent but to the server that the user names, and with no key but the one in the variable that the user names. Requests go through
the standard library: huggingface_hub's client hands the saved Hugging Face token to any server it is pointed at without a key. Left out on
purpose: streaming, batch endpoints, connections kept open between requests, and counting tokens before the server has.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import logging
import os
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from frugalign.base.errors import FrugalignError
from frugalign.base.files import writing
from frugalign.data.templating import Prompt
from frugalign.evaluation.judges.pairwise import CRITERION, VERDICT_REQUEST, comparison, parse_verdict
from frugalign.options.check import check_value
from frugalign.options.kinds import COUNT, COUNT_OR_ZERO, NON_NEGATIVE, POSITIVE

_log = logging.getLogger(__name__)

_MENDABLE = {
    401: "refuses the key",
    402: "asks for payment",
    403: "refuses the key",
    404: "knows no such model, or has no chat at this address",
    405: "has no chat at this address",
}
_RETRIED = {408, 409, 425, 429}
_MAX_WAIT = 60.0
"""Seconds; the longest pause before a request is sent again."""
_GIVE_UP = 20
"""Comparisons in a row without an answer after which the rest of a call is not tried."""
_TEMPLATE_TOKENS = 100
"""More tokens than a server's chat template puts around one message."""

_KINDS = {
    **dict.fromkeys(("concurrency", "max_tokens"), COUNT),
    **dict.fromkeys(("retries", "max_requests"), COUNT_OR_ZERO),
    **dict.fromkeys(("temperature", "prompt_price", "completion_price", "max_cost"), NON_NEGATIVE),
    "timeout": POSITIVE,
}
"""What the numbers of `LLMJudgeOptions` may be."""


@dataclass(frozen=True)
class LLMJudgeOptions:
    """How to reach the judge, and what it may cost.

    Args:
        base_url: up to and including `/v1`, as OpenAI's clients take it.
        model: the name that the server knows it by.
        api_key_env: name of the environment variable that holds the key; None: no key is sent.
        max_tokens: the most that the judge may write for a verdict.
        retries: how often a request is sent again after 408, 409, 425, 429, 5xx, a timeout or a lost connection, each time after 1, 2, 4, … seconds, or
            as long as the server asks for, at most 60.
        timeout: seconds without a sign of the server.
        concurrency: requests under way at once.
        max_requests: requests that may be sent, retries too.
        max_cost: what may be spent, in the currency of the prices. Before a request is sent it is taken for as dear as it can be (a token for every
            byte, all of `max_tokens`), so that the cap is not passed; one that timed out, or whose answer does not say what it used, counts as that.
        prompt_price: of a million prompt tokens, counted by the server's `usage`.
        completion_price: of a million tokens of the answers, likewise.
        cache_path: JSON lines of what was answered; a run that was killed goes on with them.
        criterion: what "better" means, in words that the judge reads.

    Raises:
        FrugalignError: a value that cannot be meant.
    """

    base_url: str
    model: str
    api_key_env: str | None = None
    max_tokens: int = 512
    temperature: float = 0.0
    retries: int = 5
    timeout: float = 60.0
    concurrency: int = 8
    max_requests: int | None = None
    max_cost: float | None = None
    prompt_price: float = 0.0
    completion_price: float = 0.0
    cache_path: str | Path | None = None
    criterion: str = CRITERION

    def __post_init__(self) -> None:
        if not _is_address(self.base_url):
            raise FrugalignError("base_url must be http:// or https:// and a host, with no user or key in it.")
        for name, kind in _KINDS.items():
            if getattr(self, name) is not None:
                check_value(name, getattr(self, name), kind)
        if self.max_cost is not None and self.prompt_price == self.completion_price == 0:
            raise FrugalignError(
                "max_cost needs prompt_price or completion_price: without them nothing costs anything."
            )

    @property
    def url(self) -> str:
        """Where requests go."""
        base = self.base_url.rstrip("/")
        return base if base.endswith("/chat/completions") else f"{base}/chat/completions"

    def price(self, prompt_tokens: int, completion_tokens: int) -> float:
        """What so many tokens cost."""
        return (prompt_tokens * self.prompt_price + completion_tokens * self.completion_price) / 1e6


class LLMJudge:
    """A `PairJudge` that asks a server, once per comparison; `both_orders` does the swapping.

    A comparison has no verdict where the server did not answer or refused it (too long, say), where the answer held none, and
    beyond a cap. The caps hold for this object; what the cache answers costs nothing.

    Args:
        sleep: waits so many seconds before a request is sent again.

    Raises:
        FrugalignError: here, where the key's variable is not set or the cache cannot be read; from `compare`, all answers kept, for a key
            or a model that the server does not take, no server at the address, or one that answers nothing.
    """

    def __init__(self, options: LLMJudgeOptions, *, sleep: Callable[[float], None] = time.sleep) -> None:
        self.options, self.name, self._sleep = options, options.model, sleep
        self._key = os.environ.get(options.api_key_env, "").strip() if options.api_key_env else ""
        if options.api_key_env and not (self._key.isascii() and self._key.isprintable() and self._key):
            raise FrugalignError(f"The environment variable {options.api_key_env}, named by api_key_env, holds no key.")
        self._replies = _Replies(Path(options.cache_path) if options.cache_path else None)
        self._opener = urllib.request.build_opener(_NoRedirect)
        self._counts = dict.fromkeys(
            ("requests", "cached", "failed", "unparsed", "prompt_tokens", "completion_tokens"), 0
        )
        self._turn = threading.Condition()  # guards what follows
        self._cost = self._reserved = 0.0
        self._under_way = self._failed_in_a_row = 0
        self._capped = self._cancelled = self._has_answered = False
        self._failure: _Failure | None = None

    @property
    def counts(self) -> dict[str, float]:
        """`requests` sent, retries too; comparisons that were `cached`, `failed` (no answer, or beyond a cap) or `unparsed` (an answer
        without a verdict); tokens as the server counts them; `cost` in the currency of the prices."""
        return {**self._counts, "cost": self._cost}

    def compare(self, prompts: Sequence[Prompt], first: Sequence[Any], second: Sequence[Any]) -> list[float | None]:
        """1 for the first, 0 for the second, one half for a tie, None without a verdict."""
        bodies = [self._body(*row) for row in zip(prompts, first, second, strict=True)]
        keys = [hashlib.sha256(self.options.url.encode() + b"\n" + body).hexdigest() for body in bodies]
        self._counts["cached"] += sum(key in self._replies.texts for key in keys)
        asked = {key: body for key, body in zip(keys, bodies, strict=True) if key not in self._replies.texts}
        self._failed_in_a_row, self._failure, self._cancelled = 0, None, False
        with ThreadPoolExecutor(self.options.concurrency) as pool:
            waiting = [pool.submit(self._ask, key, body) for key, body in asked.items()]
            try:
                for future in as_completed(waiting):
                    future.result()
            except BaseException:
                self._cancelled = True  # those under way do not try again
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        return self._verdicts(keys)

    def _verdicts(self, keys: Sequence[str]) -> list[float | None]:
        replies = [self._replies.texts.get(key) for key in keys]
        verdicts = [None if reply is None else parse_verdict(reply) for reply in replies]
        n_failed = replies.count(None)
        self._counts["failed"] += n_failed
        self._counts["unparsed"] += verdicts.count(None) - n_failed
        if self._failure is not None:
            if not (self._failure.again or self._has_answered) and n_failed == len(keys):
                raise FrugalignError(f"The judge at {self.options.url} takes no request: {self._failure}.")
            _log.warning("%d of %d comparisons got no answer: %s.", n_failed, len(keys), self._failure)
        return verdicts

    def _body(self, prompt: Prompt, first: Any, second: Any) -> bytes:
        text = f"{comparison(prompt, first, second, self.options.criterion)}\n\n{VERDICT_REQUEST}"
        asked = {
            "model": self.options.model,
            "messages": [{"role": "user", "content": text}],
            "max_tokens": self.options.max_tokens,
            "temperature": self.options.temperature,
        }
        return json.dumps(asked).encode()

    def _ask(self, key: str, body: bytes) -> None:
        """Have this answered and the answer kept, or give up after all tries."""
        dearest = self.options.price(len(body) + _TEMPLATE_TOKENS, self.options.max_tokens)
        failure: _Failure | None = None
        for attempt in range(self.options.retries + 1):
            if failure is not None:
                self._sleep(min(_MAX_WAIT, max(2.0 ** (attempt - 1), failure.wait)))
            if not self._admitted(dearest):
                return
            cost, usage = 0.0, (0, 0)
            try:
                text, usage = _read_reply(self._post(body))
                cost = self.options.price(*usage) if any(usage) else dearest
                self._replies.add(key, text)
                self._has_answered, self._failed_in_a_row = True, 0
                return
            except _Failure as error:
                failure, cost = error, dearest if error.may_be_billed else 0.0
            except FrugalignError:
                self._cancelled = True  # before the next one is taken up
                raise
            finally:
                self._settle(dearest, cost, usage)
            if not failure.again:
                break
        assert failure is not None  # a try that does not fail returns
        if failure.no_server and not self._has_answered:
            raise FrugalignError(f"No server answers at {self.options.url}: {failure}.")
        with self._turn:
            self._failed_in_a_row += 1
            self._failure = failure

    def _admitted(self, dearest: float) -> bool:
        """Whether one more request may be sent; waits for those under way where it depends on what they turn out to cost."""
        options = self.options
        with self._turn:
            while not (self._capped or self._cancelled or self._failed_in_a_row >= _GIVE_UP):
                if options.max_requests is not None and self._counts["requests"] >= options.max_requests:
                    self._stop(f"max_requests = {options.max_requests}")
                elif options.max_cost is None or self._cost + self._reserved + dearest <= options.max_cost:
                    self._counts["requests"] += 1
                    self._under_way += 1
                    self._reserved += dearest
                    return True
                elif self._under_way:
                    self._turn.wait()
                else:
                    self._stop(f"max_cost = {options.max_cost}")
            return False

    def _stop(self, cap: str) -> None:
        self._capped = True
        _log.warning("The judge %s has reached %s: the remaining comparisons have no verdict.", self.name, cap)

    def _settle(self, dearest: float, cost: float, usage: tuple[int, int]) -> None:
        """A request is over: what it cost takes the place of what was held back for it."""
        with self._turn:
            self._under_way -= 1
            self._reserved = self._reserved - dearest if self._under_way else 0.0
            self._cost += cost
            self._counts["prompt_tokens"] += usage[0]
            self._counts["completion_tokens"] += usage[1]
            self._turn.notify_all()

    def _post(self, body: bytes) -> bytes:
        """What the server answers. A `_Failure` where it does not; FrugalignError where it will not answer any other request either."""
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {self._key}"} if self._key else {})
        try:
            request = urllib.request.Request(self.options.url, body, headers)
            with self._opener.open(request, timeout=self.options.timeout) as response:
                content: bytes = response.read()
                return content
        except urllib.error.HTTPError as error:
            with error:
                said = self._said(error)
            if what := "moved, and is not followed" if 300 <= error.code < 400 else _MENDABLE.get(error.code):
                if error.code in (401, 403) and not self._key:
                    what = "asks for a key (api_key_env names the environment variable that holds it)"
                raise FrugalignError(
                    f"The judge at {self.options.url} {what}; asked for the model {self.options.model!r}: {said}."
                ) from error
            again = error.code in _RETRIED or error.code >= 500
            raise _Failure(said, again=again, wait=_seconds(error.headers.get("Retry-After"))) from error
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", None) or error
            if isinstance(reason, TimeoutError):
                said = f"no answer in {self.options.timeout:g} s"
                raise _Failure(said, again=True, may_be_billed=True) from error
            said = f"{type(reason).__name__}: {reason}".rstrip(".: ")
            raise _Failure(said, again=True, no_server=isinstance(error, urllib.error.URLError)) from error

    def _said(self, error: urllib.error.HTTPError) -> str:
        """A refusal in the server's words, short, and without the key, which some servers repeat."""
        try:
            text = error.read(10_000).decode(errors="replace")
            found = json.loads(text)["error"]
            text = str(found["message"] if isinstance(found, dict) else found)
        except (OSError, http.client.HTTPException):
            text = ""
        except (ValueError, TypeError, KeyError):
            pass  # not OpenAI's form: the text as it is
        text = " ".join((text.replace(self._key, "…") if self._key else text).split())[:200].rstrip(". ")
        return f"HTTP {error.code}, {text}" if text else f"HTTP {error.code}"


def _is_address(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return (
            parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0 and "@" not in parts.netloc
        )
    except ValueError:  # a port that is no number
        return False


class _Failure(Exception):
    """A request without an answer. `again`: sending it again may help, after `wait` seconds where the server asks for them."""

    def __init__(
        self, why: str, *, again: bool, wait: float = 0.0, no_server: bool = False, may_be_billed: bool = False
    ) -> None:
        super().__init__(why)
        self.again, self.wait, self.no_server, self.may_be_billed = again, wait, no_server, may_be_billed


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Redirects are refused: one that is followed makes a GET of the POST and carries the key to another server."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


def _read_reply(content: bytes) -> tuple[str, tuple[int, int]]:
    """The text of a chat completion (empty where it has none), and its tokens of prompt and completion (0 where it does not say)."""
    try:
        answer = json.loads(content)
        text, usage = answer["choices"][0]["message"]["content"], answer.get("usage") or {}
        tokens = int(usage.get("prompt_tokens") or 0), int(usage.get("completion_tokens") or 0)
    except (ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
        raise _Failure("what it sends is no chat completion", again=False, may_be_billed=True) from error
    return text if isinstance(text, str) else "", tokens


def _seconds(header: str | None) -> float:
    """The seconds of a Retry-After header; 0 where there is none, or a date."""
    try:
        return max(0.0, float(header or 0))
    except ValueError:
        return 0.0


class _Replies:
    """`texts`: what was answered, by the hash of what was asked; also in a file, line by line as the answers come."""

    def __init__(self, path: Path | None) -> None:
        self.path, self.texts = path, dict[str, str]()
        self._lock = threading.Lock()
        content = b""
        if path is not None and path.exists():
            try:
                content = path.read_bytes()
            except OSError as error:
                raise FrugalignError(f"Cannot read the judge's cache {path}: {error.strerror or error}.") from error
        # By bytes: a kill may cut a line within a character, and a reply may hold characters that splitlines breaks at.
        for line in content.split(b"\n"):
            try:
                row = json.loads(line)
                self.texts[str(row["key"])] = str(row["reply"])
            except (ValueError, TypeError, KeyError):
                continue  # cut by a kill
        self._cut = not content.endswith(b"\n") and bool(content)

    def add(self, key: str, text: str) -> None:
        """Keep an answer, at once."""
        with self._lock:
            self.texts[key] = text
            if self.path is None:
                return
            line = json.dumps({"key": key, "reply": text}) + "\n"
            with writing(self.path):
                self.path.parent.mkdir(parents=True, exist_ok=True)
                with self.path.open("a", encoding="utf-8") as file:
                    file.write(f"\n{line}" if self._cut else line)  # what a kill cut stays a line of its own
            self._cut = False
