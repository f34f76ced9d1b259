"""Answers as OpenAI writes them, whole or in chunks, with what proxies add: `kl`, `rejections` and `tokens`."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from frugalign import __version__
from frugalign.policies.answer import rejected_text
from frugalign.proxy.mixed import RowChoice
from frugalign.serving.models import Served
from frugalign.serving.reading import Asked
from frugalign.serving.scheduler import Piece

_LOWEST = -9999.0
"""What JSON shows of a log-probability of −∞, as OpenAI does."""


@dataclass
class _Choice:
    """One answer so far."""

    text: str = ""
    shown: int = 0
    n_tokens: int = 0
    kl: float = 0.0
    rejections: int = 0
    finish: str | None = None
    choices: list[RowChoice] = field(default_factory=list)


class Writer:
    """Writes the answers of one request. `add` takes a piece, and returns what a stream sends for it."""

    def __init__(self, served: Served, asked: Asked, prompt_tokens: Sequence[int], n_answers: int) -> None:
        self._served, self._asked = served, asked
        self._prompt_tokens = sum(prompt_tokens)
        self._answers = [_Choice() for _ in range(n_answers)]
        kind = "chat.completion" if asked.is_chat else "text_completion"
        self._head = {
            "id": f"{'chatcmpl' if asked.is_chat else 'cmpl'}-{uuid.uuid4().hex}",
            "object": kind + (".chunk" if asked.is_chat and asked.stream else ""),
            "created": int(time.time()),
            "model": asked.model,
            "system_fingerprint": f"frugalign-{__version__}",
        }

    @property
    def is_finished(self) -> bool:
        """Whether every answer has ended."""
        return all(each.finish is not None for each in self._answers)

    def add(self, piece: Piece) -> None:
        """Note a piece."""
        own = self._answers[piece.index]
        own.text += piece.text
        own.finish = piece.finish
        if piece.choice is not None:
            own.n_tokens += 1
            own.kl += piece.choice.kl
            own.rejections += piece.choice.n_rejected
            if self._asked.top_logprobs is not None or self._asked.show_rejections:
                own.choices.append(piece.choice)

    def whole(self) -> dict[str, Any]:
        """The whole response."""
        choices = []
        for index, own in enumerate(self._answers):
            said = (
                {"message": {"role": "assistant", "content": own.text, "refusal": None}}
                if self._asked.is_chat
                else {"text": own.text}
            )
            choices.append({"index": index, **said, **self._details(own, own.choices, 0)})
        return {**self._head, "choices": choices, "usage": self._usage()}

    def opening(self) -> list[dict[str, Any]]:
        """The chunks before the first token: a chat names its speaker."""
        if not self._asked.is_chat:
            return []
        delta = {"role": "assistant", "content": ""}
        return [
            self._chunk({"index": index, "delta": delta, "logprobs": None, "finish_reason": None})
            for index in range(len(self._answers))
        ]

    def chunk(self, index: int) -> dict[str, Any] | None:
        """What is new of an answer since its last chunk. None if that is nothing that a client could use."""
        own = self._answers[index]
        if own.shown == len(own.text) and own.finish is None and not own.choices:
            return None
        new, own.choices = own.choices, []
        text, start = own.text[own.shown :], own.shown
        own.shown = len(own.text)
        said = {"delta": {"content": text} if text else {}} if self._asked.is_chat else {"text": text}
        return self._chunk({"index": index, **said, **self._details(own, new, start)})

    def closing(self) -> list[dict[str, Any]]:
        """The chunk after the last token, if the client wants the usage."""
        return [{**self._chunk(), "usage": self._usage()}] if self._asked.include_usage else []

    def _chunk(self, *choices: dict[str, Any]) -> dict[str, Any]:
        return {**self._head, "choices": list(choices)}

    def _usage(self) -> dict[str, int]:
        answered = sum(each.n_tokens for each in self._answers)
        return {
            "prompt_tokens": self._prompt_tokens,
            "completion_tokens": answered,
            "total_tokens": self._prompt_tokens + answered,
        }

    @property
    def usage(self) -> tuple[int, int]:
        """Tokens of the prompts and of the answers."""
        found = self._usage()
        return found["prompt_tokens"], found["completion_tokens"]

    @property
    def texts(self) -> list[str]:
        """The answers so far."""
        return [each.text for each in self._answers]

    def _details(self, own: _Choice, new: Sequence[RowChoice], start: int) -> dict[str, Any]:
        found: dict[str, Any] = {"logprobs": None, "finish_reason": own.finish}
        if self._asked.top_logprobs is not None and new:
            found["logprobs"] = self._chat_logprobs(new) if self._asked.is_chat else self._logprobs(new, start)
        found |= {"kl": own.kl, "rejections": own.rejections}
        if self._asked.show_rejections:
            found["tokens"] = [self._turned_down(choice) for choice in new]
        return found

    def _token(self, token: int) -> str:
        return str(self._served.base.tokenizer.decode([token]))

    def _chat_logprobs(self, new: Sequence[RowChoice]) -> dict[str, Any]:
        def entry(token: int, log_prob: float | None) -> dict[str, Any]:
            text = self._token(token)
            known = None if "\ufffd" in text else list(text.encode())
            return {"token": text, "logprob": _number(log_prob), "bytes": known}

        content = [
            entry(each.token, each.log_prob) | {"top_logprobs": [entry(*other) for other in each.top]} for each in new
        ]
        return {"content": content, "refusal": None}

    def _logprobs(self, new: Sequence[RowChoice], start: int) -> dict[str, Any]:
        texts = [self._token(each.token) for each in new]
        offsets = [start + sum(map(len, texts[:place])) for place in range(len(texts))]
        return {
            "tokens": texts,
            "token_logprobs": [_number(each.log_prob) for each in new],
            "top_logprobs": [{self._token(token): _number(value) for token, value in each.top} for each in new],
            "text_offset": offsets,
        }

    def _turned_down(self, choice: RowChoice) -> dict[str, Any]:
        """A token, how likely it was accepted, and the proposals rejected before it."""
        trace, tokenizer = choice.trace, self._served.base.tokenizer
        rejected = () if trace is None else trace.rejected
        return {
            "token": self._token(choice.token),
            "id": choice.token,
            "acceptance": None if trace is None else trace.acceptance,
            "rejected": [
                {"token": rejected_text(token, tokenizer), "id": token, "acceptance": accepted}
                for token, accepted in rejected
            ],
            "kl": choice.kl,
            "share": choice.share,
        }


def _number(log_prob: float | None) -> float | None:
    return None if log_prob is None else max(log_prob, _LOWEST)


def sse(value: Any) -> bytes:
    """One server-sent event."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, allow_nan=False)
    return f"data: {text}\n\n".encode("utf-8", "replace")
