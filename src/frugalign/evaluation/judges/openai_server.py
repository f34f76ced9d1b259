"""A model behind an OpenAI-compatible chat server as pairwise judge, with retries, a spending cap and a cache on disk.

Requests go only to the server that the user names, with only the key in the environment variable that the user names. They
use the standard library, because huggingface_hub's client sends the saved Hugging Face token to any server if no key is
given. Left out on purpose: streaming, batch endpoints, persistent connections, and local token counts.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from frugalign.base.errors import FrugalignError
from frugalign.base.files import writing
from frugalign.base.parsing import parse_json
from frugalign.base.wording import shown
from frugalign.data.templating import Prompt
from frugalign.evaluation.judges.chat_request import ChatServer, Failure, check_address
from frugalign.evaluation.judges.pairwise import CRITERION, VERDICT_REQUEST, comparison, parse_verdict
from frugalign.options.check import check_value
from frugalign.options.kinds import COUNT, COUNT_OR_ZERO, NAME, NON_NEGATIVE, TEXT, Kind

_log = logging.getLogger(__name__)

_MAX_WAIT = 60.0
"""Seconds; the longest pause before a request is sent again."""
_GIVE_UP = 20
"""After this many failed comparisons in a row, the rest of a call is not tried."""
_TEMPLATE_TOKENS = 100
"""An upper bound on the tokens that a server's chat template adds to one message."""

_KINDS: dict[str, Kind] = {
    **dict.fromkeys(("model", "api_key_env", "cache_path"), NAME),
    "criterion": TEXT,
    "max_tokens": COUNT,
    "concurrency": Kind("at least 1", lambda x: x >= 1, whole=True, largest=256),
    "retries": Kind("at least 0", lambda x: x >= 0, whole=True, largest=100),
    "max_requests": COUNT_OR_ZERO,
    **dict.fromkeys(("temperature", "prompt_price", "completion_price", "max_cost"), NON_NEGATIVE),
    "timeout": Kind("above 0", lambda x: x > 0, largest=86_400),
}
"""The rules for the fields of `LLMJudgeOptions`."""
_MAY_BE_NONE = {"api_key_env", "cache_path", "max_requests", "max_cost"}


@dataclass(frozen=True)
class LLMJudgeOptions:
    """The judge's server, and the limits on its cost.

    Args:
        base_url: the server's address up to and including `/v1`, as in OpenAI's clients.
        model: the model's name on the server.
        api_key_env: name of the environment variable that holds the key. None: no key is sent.
        max_tokens: maximum length of a reply.
        retries: how often a request is repeated after 408, 409, 425, 429, 5xx, a timeout or a lost connection. The waits are
            1, 2, 4, … seconds, or as long as the server asks for, at most 60.
        timeout: seconds until the whole reply must be here.
        concurrency: simultaneous requests.
        max_requests: maximum number of requests, including retries.
        max_cost: maximum cost, in the currency of the prices. Before it is sent, a request reserves its highest possible cost: one
            token per byte, and all of `max_tokens`. A request that timed out, or whose reply has no `usage`, costs that much.
        prompt_price: price of a million prompt tokens, counted by the server's `usage`.
        completion_price: price of a million reply tokens, counted likewise.
        cache_path: a JSON-lines file of replies, from which a killed run resumes.
        criterion: what "better" means; the judge reads it.

    Raises:
        FrugalignError: a value out of range.
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
        if (wrong := check_address(self.base_url)) is not None:
            raise FrugalignError(f"base_url {wrong}.")
        for name, kind in _KINDS.items():
            value = getattr(self, name)
            if isinstance(value, (list, tuple)):
                raise FrugalignError(f"{name} is {shown(value)}; it must be one value.")
            if value is not None or name not in _MAY_BE_NONE:
                check_value(name, value, kind)
        if self.max_cost is not None and self.prompt_price == self.completion_price == 0:
            raise FrugalignError("max_cost needs prompt_price or completion_price: without them every request is free.")

    @property
    def url(self) -> str:
        """The address of the requests."""
        base = self.base_url.rstrip("/")
        return base if base.endswith("/chat/completions") else f"{base}/chat/completions"

    def price(self, prompt_tokens: int, completion_tokens: int) -> float:
        """The cost of this many tokens."""
        return (prompt_tokens * self.prompt_price + completion_tokens * self.completion_price) / 1e6


class LLMJudge:
    """A `PairJudge` that sends one request per comparison. `both_orders` swaps the answers.

    A comparison has no verdict if the server fails or refuses it, if the reply holds none, or beyond a cap. The caps apply
    to this object. Cached replies are free.

    Args:
        sleep: waits this many seconds before a request is repeated.

    Raises:
        FrugalignError: the key's variable is not set, or the cache cannot be read. `compare` raises it, with all replies kept, for a
            key or model that the server refuses, for no server at the address, and for one that answers no request.
    """

    def __init__(self, options: LLMJudgeOptions, *, sleep: Callable[[float], None] = time.sleep) -> None:
        self.options, self.name, self._sleep = options, options.model, sleep
        self._key = os.environ.get(options.api_key_env, "").strip() if options.api_key_env else ""
        if options.api_key_env and not (self._key.isascii() and self._key.isprintable() and self._key):
            raise FrugalignError(f"The environment variable {options.api_key_env}, named by api_key_env, holds no key.")
        self._replies = _Replies(Path(options.cache_path) if options.cache_path else None)
        self._server = ChatServer(options.url, options.model, self._key, options.timeout)
        self._counts = dict.fromkeys(
            ("requests", "cached", "failed", "unparsed", "prompt_tokens", "completion_tokens"), 0
        )
        self._turn = threading.Condition()  # guards what follows
        self._cost = self._reserved = 0.0
        self._under_way = self._failed_in_a_row = 0
        self._capped = self._cancelled = self._has_answered = False
        self._failure: Failure | None = None

    @property
    def counts(self) -> dict[str, float]:
        """Counts so far.

        `requests`: sent, including retries. `cached`, `failed` (no reply, or beyond a cap), `unparsed` (a reply without a
        verdict): comparisons. Tokens are the server's counts; `cost` is in the currency of the prices.
        """
        return {**self._counts, "cost": self._cost}

    def compare(self, prompts: Sequence[Prompt], first: Sequence[Any], second: Sequence[Any]) -> list[float | None]:
        """1 for the first answer, 0 for the second, one half for a tie, None without a verdict."""
        bodies = [self._body(*row) for row in zip(prompts, first, second, strict=True)]
        keys = [hashlib.sha256(self.options.url.encode() + b"\n" + body).hexdigest() for body in bodies]
        self._counts["cached"] += sum(key in self._replies.texts for key in keys)
        pending = {key: body for key, body in zip(keys, bodies, strict=True) if key not in self._replies.texts}
        self._failed_in_a_row, self._failure, self._cancelled = 0, None, False
        with ThreadPoolExecutor(self.options.concurrency) as pool:
            waiting = [pool.submit(self._request, key, body) for key, body in pending.items()]
            try:
                for future in as_completed(waiting):
                    future.result()
            except BaseException:
                self._cancelled = True  # requests in flight are not retried
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
        request = {
            "model": self.options.model,
            "messages": [{"role": "user", "content": text}],
            "max_tokens": self.options.max_tokens,
            "temperature": self.options.temperature,
        }
        return json.dumps(request).encode()

    def _request(self, key: str, body: bytes) -> None:
        """Send the request, with retries, and cache the reply."""
        dearest = self.options.price(len(body) + _TEMPLATE_TOKENS, self.options.max_tokens)
        failure: Failure | None = None
        for attempt in range(self.options.retries + 1):
            if failure is not None:
                self._sleep(min(_MAX_WAIT, max(2.0 ** (attempt - 1), failure.wait)))
            if not self._admitted(dearest):
                return
            cost, usage = 0.0, (0, 0)
            try:
                text, usage = self._server.ask(body)
                cost = self.options.price(*usage) if any(usage) else dearest
                self._replies.add(key, text)
                self._has_answered, self._failed_in_a_row = True, 0
                return
            except Failure as error:
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
        """Whether one more request may be sent. Waits for requests in flight if their cost decides."""
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
        """Replace a finished request's reserved cost by its actual cost."""
        with self._turn:
            self._under_way -= 1
            self._reserved = self._reserved - dearest if self._under_way else 0.0
            self._cost += cost
            self._counts["prompt_tokens"] += usage[0]
            self._counts["completion_tokens"] += usage[1]
            self._turn.notify_all()


class _Replies:
    """Cached replies: `texts` maps a request's hash to its reply. A file receives each reply as it arrives."""

    def __init__(self, path: Path | None) -> None:
        self.path, self.texts = path, dict[str, str]()
        self._lock = threading.Lock()
        content = b""
        if path is not None and path.exists():
            try:
                content = path.read_bytes()
            except OSError as error:
                raise FrugalignError(f"Cannot read the judge's cache {path}: {error.strerror or error}.") from error
        # Split bytes: a kill may truncate a line within a character, and a reply may contain Unicode line breaks.
        for line in content.split(b"\n"):
            try:
                row = parse_json(line)
                self.texts[str(row["key"])] = str(row["reply"])
            except (ValueError, TypeError, KeyError):
                continue  # truncated by a kill
        self._cut = not content.endswith(b"\n") and bool(content)

    def add(self, key: str, text: str) -> None:
        """Store a reply, in memory and on disk."""
        with self._lock:
            self.texts[key] = text
            if self.path is None:
                return
            line = json.dumps({"key": key, "reply": text}) + "\n"
            with writing(self.path):
                self.path.parent.mkdir(parents=True, exist_ok=True)
                with self.path.open("a", encoding="utf-8") as file:
                    file.write(f"\n{line}" if self._cut else line)  # a truncated line stays separate
            self._cut = False
