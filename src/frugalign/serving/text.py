"""From tokens to text while it is generated: whole characters only, and nothing from a stop sequence on."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

_UNFINISHED = "\ufffd"
_LONGEST_CHARACTER = 8
"""Tokens after which bytes that form no character are shown as they are."""


class TextStream:
    """The text of one answer.

    A few tokens are decoded with those before them, because a tokenizer's spaces depend on what precedes. Text that may be
    the beginning of a stop sequence is held back until it is known.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stop: Sequence[str] = ()) -> None:
        self._tokenizer, self._stop = tokenizer, tuple(stop)
        self._ids: list[int] = []
        self._start = self._read = 0
        self._held = ""
        self.stopped = False
        """Whether a stop sequence was found."""

    def push(self, token: int) -> str:
        """The text that is certain after one more token."""
        self._ids.append(token)
        known, found = self._decode(self._read), self._decode(len(self._ids))
        waits = found.endswith(_UNFINISHED) and len(self._ids) - self._read < _LONGEST_CHARACTER
        if waits or len(found) <= len(known):
            return ""
        self._start, self._read = self._read, len(self._ids)
        return self._release(found[len(known) :])

    def finish(self) -> str:
        """What was held back, at the end of the answer."""
        rest = "" if self.stopped else self._held
        if not self.stopped and self._read < len(self._ids):
            rest = self._release(self._decode(len(self._ids))[len(self._decode(self._read)) :]) + self._held
        self._held = ""
        return rest

    def _decode(self, end: int) -> str:
        return str(self._tokenizer.decode(self._ids[self._start : end], skip_special_tokens=True))

    def _release(self, text: str) -> str:
        if self.stopped:
            return ""
        text = self._held + text
        places = [place for place in (text.find(each) for each in self._stop) if place >= 0]
        if places:
            self.stopped, self._held = True, ""
            return text[: min(places)]
        held = max((_overlap(text, each) for each in self._stop), default=0)
        self._held = text[len(text) - held :]
        return text[: len(text) - held]


def _overlap(text: str, stop: str) -> int:
    """How many of the last characters of `text` begin `stop`."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)
