"""The HTTP routes: OpenAI's protocol over a scheduler.

Bodies are read and checked here by hand, so that every mistake is one sentence in OpenAI's form. Nothing of a request is
logged unless the settings say so.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import logging
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException
from starlette.types import Receive, Scope, Send

from frugalign.decoding.continuous import Row
from frugalign.decoding.noise import row_keys
from frugalign.proxy.mixed import RowSettings
from frugalign.serving.answers import Writer, sse
from frugalign.serving.errors import RequestError
from frugalign.serving.metrics import Metrics
from frugalign.serving.models import Served
from frugalign.serving.playground import page
from frugalign.serving.reading import Asked, parse_json, read_request, token_ids_of
from frugalign.serving.scheduler import Answer, Event, Job, Scheduler
from frugalign.serving.settings import ServerSettings
from frugalign.serving.text import TextStream

_log = logging.getLogger(__name__)
_GREEDY_BELOW = 1e-4
"""A temperature under this is greedy decoding: logits divided by it would overflow."""
_BODY_SECONDS = 30.0
_READ_ON = 16
Handler = Callable[[Request], Awaitable[Response]]


class Server:
    """The routes of one served base."""

    def __init__(self, served: Served, scheduler: Scheduler, settings: ServerSettings, metrics: Metrics) -> None:
        self.served, self.scheduler, self.settings, self.metrics = served, scheduler, settings, metrics
        self._keys = [hashlib.sha256(key.encode()).digest() for key in settings.api_keys]

    def app(self) -> FastAPI:
        """The application. Its own documentation pages are left out, since they load scripts from elsewhere."""
        app = FastAPI(title="frugalign", docs_url=None, redoc_url=None, openapi_url=None)
        routes: list[tuple[str, str, Handler, bool]] = [
            ("GET", "/", self.playground, False),
            ("GET", "/health", self.health, False),
            ("GET", "/metrics", self.show_metrics, True),
            ("GET", "/v1/models", self.models, True),
            ("GET", "/v1/models/{model:path}", self.model, True),
            ("POST", "/v1/chat/completions", self.chat, True),
            ("POST", "/v1/completions", self.complete, True),
        ]
        for method, path, handler, guarded in routes:
            app.add_route(path, self._wrapped(path, handler, guarded), methods=[method])

        async def refuse(request: Request, error: Exception) -> Response:
            assert isinstance(error, HTTPException)
            return _refusal(RequestError(f"{error.detail}: {request.method} here.", status=error.status_code))

        app.add_exception_handler(HTTPException, refuse)
        return app

    def _wrapped(self, path: str, handler: Handler, guarded: bool) -> Handler:
        """The handler behind the key check, with every error in OpenAI's form, and counted."""

        async def run(request: Request) -> Response:
            started = time.monotonic()
            try:
                if guarded:
                    self._check_key(request)
                response = await handler(request)
            except RequestError as error:
                response = _refusal(error)
            except Exception as error:
                _log.error("%s failed.", path, exc_info=error)
                response = _refusal(RequestError("The server failed at this request.", status=500))
            self.metrics.requests.labels(path, str(response.status_code)).inc()
            _log.info("%s %s %d, %.3f s", request.method, path, response.status_code, time.monotonic() - started)
            return response

        return run

    def _check_key(self, request: Request) -> None:
        if not self._keys:
            return
        scheme, _, key = request.headers.get("authorization", "").partition(" ")
        given = hashlib.sha256(key.strip().encode("utf-8", "replace")).digest()
        # Every key is compared, each in constant time.
        known = [hmac.compare_digest(given, own) for own in self._keys]
        if scheme.lower() != "bearer" or not any(known):
            raise RequestError("The API key is missing or wrong.", status=401, code="invalid_api_key")

    async def playground(self, request: Request) -> Response:
        """The page to try proxies on."""
        html, policy = page()
        headers = {
            "Content-Security-Policy": policy,
            "X-Content-Type-Options": "nosniff",
            "X-Frame-Options": "DENY",
            "Referrer-Policy": "no-referrer",
        }
        return HTMLResponse(html, headers=headers)

    async def health(self, request: Request) -> Response:
        """200 while the server takes requests, else 503."""
        alive = self.scheduler.is_alive
        return JSONResponse({"status": "ok" if alive else "stopping"}, status_code=200 if alive else 503)

    async def show_metrics(self, request: Request) -> Response:
        """Prometheus' text format."""
        return Response(self.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    async def models(self, request: Request) -> Response:
        """The base and its proxies."""
        return JSONResponse({"object": "list", "data": self.served.cards(self.settings.max_new_tokens)})

    async def model(self, request: Request) -> Response:
        """One model, also a mixture that the list does not name."""
        name = request.path_params["model"]
        mixture = self.served.mixture(name, None)
        cards = self.served.cards(self.settings.max_new_tokens)
        card = next((card for card in cards if card["id"] == name), None)
        return JSONResponse(card or cards[0] | {"id": name, "parent": self.served.name, "strength": mixture})

    async def chat(self, request: Request) -> Response:
        """`/v1/chat/completions`."""
        return await self._answer(request, is_chat=True)

    async def complete(self, request: Request) -> Response:
        """`/v1/completions`."""
        return await self._answer(request, is_chat=False)

    async def _answer(self, request: Request, *, is_chat: bool) -> Response:
        asked = read_request(parse_json(await self._body(request)), is_chat=is_chat)
        prompts, rows = await asyncio.to_thread(self._rows, asked)
        tokenizer, loop, events = self.served.base.tokenizer, asyncio.get_running_loop(), asyncio.Queue[Event]()
        job = Job(
            [Answer(row, TextStream(tokenizer, asked.stop)) for row in rows],
            lambda event: loop.call_soon_threadsafe(events.put_nowait, event),
            self.settings.request_timeout,
        )
        writer = Writer(self.served, asked, [len(ids) for ids in prompts], len(rows))
        self.scheduler.submit(job)
        if asked.stream:
            headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
            content = self._stream(asked, events, writer)
            return _Stream(content, lambda: self.scheduler.cancel(job), media_type="text/event-stream", headers=headers)
        gone = asyncio.ensure_future(_disconnected(request))
        try:
            while not writer.is_finished:
                waiting = asyncio.ensure_future(events.get())
                await asyncio.wait({waiting, gone}, return_when=asyncio.FIRST_COMPLETED)
                if not waiting.done():
                    waiting.cancel()
                    raise RequestError("The client has left.", status=499)
                event = waiting.result()
                if isinstance(event, RequestError):
                    raise event
                writer.add(event)
        finally:
            gone.cancel()
            self.scheduler.cancel(job)
        self._log_answers(asked, writer)
        return JSONResponse(writer.whole())

    async def _stream(self, asked: Asked, events: asyncio.Queue[Event], writer: Writer) -> AsyncIterator[bytes]:
        for opening in writer.opening():
            yield sse(opening)
        while not writer.is_finished:
            event = await events.get()
            if isinstance(event, RequestError):
                yield sse(event.body())
                return
            writer.add(event)
            chunk = writer.chunk(event.index)
            if chunk is not None:
                yield sse(chunk)
        for closing in writer.closing():
            yield sse(closing)
        yield sse("[DONE]")
        self._log_answers(asked, writer)

    def _log_answers(self, asked: Asked, writer: Writer) -> None:
        _log.info("%s: %d prompt tokens, %d answered", asked.model, *writer.usage)
        if self.settings.log_requests:
            _log.info("prompts %r, answers %r", asked.prompts, writer.texts)

    async def _body(self, request: Request) -> bytes:
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":  # what a form of another site could send without being asked is refused
            raise RequestError("The content type must be application/json.", status=415)
        try:
            return await asyncio.wait_for(self._read_body(request), _BODY_SECONDS)
        except TimeoutError as error:
            raise RequestError("The body did not arrive in time.", status=408) from error

    async def _read_body(self, request: Request) -> bytes:
        limit, found, size = self.settings.max_body_bytes, bytearray(), 0
        async for part in request.stream():
            size += len(part)
            if size <= limit:
                found += part
            elif size > _READ_ON * limit:
                break
        # A little more than fits is read to its end: a client that still sends would not see the answer.
        if size > limit:
            raise RequestError(f"The body is larger than {limit} bytes.", status=413)
        return bytes(found)

    def _rows(self, asked: Asked) -> tuple[list[list[int]], list[Row]]:
        """The prompts' tokens, and one row for every answer."""
        served, settings = self.served, self.settings
        mixture = served.mixture(asked.model, asked.strength)
        prompts = [self._encode(asked, prompt, mixture) for prompt in asked.prompts]
        temperature = served.default_temperature(mixture) if asked.temperature is None else asked.temperature
        own = RowSettings(
            proxies=tuple(mixture),
            strengths=tuple(mixture.values()),
            temperature=0.0 if temperature < _GREEDY_BELOW else temperature,
            top_p=asked.top_p,
            max_kl=asked.max_kl,
            top_logprobs=asked.top_logprobs,
            trace=asked.show_rejections,
        )
        limits = [self._limit(asked, len(ids), settings) for ids in prompts]
        index = [place for place in range(len(prompts)) for _ in range(asked.n)]
        seed = secrets.randbits(63) if asked.seed is None else asked.seed
        keys = row_keys(seed, 0, index, [*range(asked.n)] * len(prompts)).tolist()
        rows = [
            Row(prompts[place], key, limits[place], RowSettings(**vars(own)))
            for place, key in zip(index, keys, strict=True)
        ]
        return prompts, rows

    def _encode(self, asked: Asked, prompt: Any, mixture: dict[str, float]) -> list[int]:
        ids = token_ids_of(prompt, len(self.served.base.tokenizer))
        return self.served.encode(prompt, mixture, asked.template_arguments) if ids is None else ids

    def _limit(self, asked: Asked, n_prompt: int, settings: ServerSettings) -> int:
        """How many tokens an answer may have."""
        context, param = self.served.engine.context_length, "messages" if asked.is_chat else "prompt"
        most = settings.max_new_tokens
        if asked.max_tokens is not None and asked.max_tokens > most:
            raise RequestError(f"max_tokens may be at most {most} here.", "max_tokens")
        room = most if context is None else min(most, context - n_prompt)
        if room < (asked.max_tokens or 1):
            raise RequestError(
                f"The prompt has {n_prompt} tokens, which leaves {max(0, room)} of the model's context of {context}.",
                param,
                code="context_length_exceeded",
            )
        return asked.max_tokens or room


class _Stream(StreamingResponse):
    """A stream that calls `on_end` when it is over, or its client has left, even before the first chunk."""

    def __init__(self, content: AsyncIterator[bytes], on_end: Callable[[], None], **how: Any) -> None:
        super().__init__(content, **how)
        self._on_end = on_end

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._on_end()


def _refusal(error: RequestError) -> Response:
    # In ASCII: what it quotes may be text that no encoding can hold.
    content = json.dumps(error.body())
    return Response(content, error.status, error.headers(), media_type="application/json")


async def _disconnected(request: Request) -> None:
    """Return when the client has left."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
