"""Answer single prompts with a policy, and show the proposals that a proxy rejected."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from rich.text import Text
from transformers import PreTrainedTokenizerBase

from frugalign.data.templating import Prompt, encode_prompts
from frugalign.decoding.chooser import TokenTrace
from frugalign.decoding.loop import Step
from frugalign.engines.transformers import context_length
from frugalign.policies.policy import Policy, Record
from frugalign.policies.prompt_rows import PromptRows
from frugalign.policies.spec import SamplingSettings

DEFAULT_NEW_TOKENS = 256


@dataclass(frozen=True)
class Answer:
    """One completion: its text, its token ids, and the proposals behind each token."""

    text: str
    ids: list[int]
    ended: bool
    trace: list[TokenTrace]


def answer(
    policy: Policy,
    prompt: Prompt,
    settings: SamplingSettings,
    *,
    turn: int = 0,
    on_text: Callable[[str], None] | None = None,
) -> Answer:
    """Answer a string or a conversation.

    Args:
        settings: `max_new_tokens` defaults to the proxy's, else 256. The default shrinks to fit the context; a given value does not.
        turn: number of the answer in a conversation. A repeated question then gets fresh noise.
        on_text: called with every new piece of text. Best-of-n calls it once, with the whole answer.

    Raises:
        FrugalignError: a prompt that does not fit, settings that the policy refuses, or a reward that fails.
    """
    settled = policy.with_defaults(settings, DEFAULT_NEW_TOKENS)
    fitted = replace(settled, max_new_tokens=settings.max_new_tokens or 1)
    batch = policy.encode(PromptRows([prompt]), fitted, epoch=turn)
    context, limit = context_length(policy.base.model), settled.max_new_tokens or DEFAULT_NEW_TOKENS
    if context is not None:
        limit = min(limit, context - len(batch.ids[0]))
    tokenizer = policy.base.tokenizer
    stream = _Stream(tokenizer, on_text) if on_text is not None else None
    found = policy.sample(batch, replace(settled, max_new_tokens=limit), record=Record(observer=stream, trace=True))
    assert found.traces is not None
    text = str(tokenizer.decode(found.completion_ids[0], skip_special_tokens=True))
    if on_text is not None and stream is not None and len(text) > stream.shown:
        on_text(text[stream.shown :])  # cut in the middle of a character
    return Answer(text, found.completion_ids[0], found.ended[0], found.traces[0])


def fitting(
    policy: Policy, messages: list[dict[str, Any]], keep: int = 0, settings: SamplingSettings | None = None
) -> list[dict[str, Any]]:
    """Drop the oldest turns of a conversation until an eighth of the context is left for the answer.

    The first `keep` messages, such as a system message, and the last one stay.
    """
    context, rendering = (
        context_length(policy.base.model),
        policy.with_defaults(settings or SamplingSettings()).rendering,
    )
    start, rest = messages[:keep], messages[keep:]
    while context is not None and len(rest) > 2:
        prompts = policy.under_principles([start + rest], rendering)
        length = len(encode_prompts(prompts, policy.base.tokenizer, max_new_tokens=1, rendering=rendering).ids[0])
        if length <= context - context // 8:
            break
        rest = rest[2:]
    return start + rest


class _Stream:
    """Hands out text token by token, whole characters only."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, on_text: Callable[[str], None]) -> None:
        self.tokenizer, self.on_text = tokenizer, on_text
        self.ids: list[int] = []
        self.shown = 0

    def __call__(self, step: Step) -> None:
        self.ids.append(int(step.emission.token[0]))
        text = str(self.tokenizer.decode(self.ids, skip_special_tokens=True))
        # A character of several tokens decodes to U+FFFD until it is complete.
        if not text.endswith("\ufffd") and len(text) > self.shown:
            self.on_text(text[self.shown :])
            self.shown = len(text)


def rejected_text(token: int | None, tokenizer: PreTrainedTokenizerBase) -> str:
    """A rejected token as it is shown: “…” for all tokens that are not candidates, which are rejected together."""
    return "…" if token is None else str(tokenizer.decode([token])).strip() or "␣"


def colour_trace(trace: Sequence[TokenTrace], tokenizer: PreTrainedTokenizerBase) -> Text:
    """A completion with its rejected proposals, readable in colour and without.

    Accepted tokens are green, or yellow if their acceptance was below one half. Rejected proposals precede the token,
    struck through in red and marked `[-so-]` for terminals without colour. `[-…-]` stands for all tokens that are not
    candidates. Tokens without an alternative stay plain.
    """
    text = Text()
    pieces = token_texts([entry.token for entry in trace], tokenizer)
    for entry, piece in zip(trace, pieces, strict=True):
        for token, times in Counter(token for token, _ in entry.rejected).items():
            text.append("[-", style="red").append(rejected_text(token, tokenizer), style="red strike")
            text.append(f"-]×{times} " if times > 1 else "-] ", style="red")
        if entry.acceptance is None:
            text.append(piece)
        else:
            text.append(piece, style="green" if entry.acceptance >= 0.5 else "yellow")
    return text


def token_texts(ids: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """The text that each token adds: `len(ids)` strings whose concatenation is the decoded text."""
    pieces, shown = [], ""
    for n in range(1, len(ids) + 1):
        whole = str(tokenizer.decode(list(ids[:n])))
        if whole.endswith("\ufffd") and n < len(ids):
            whole = shown
        pieces.append(whole[len(shown) :])
        shown = whole
    return pieces
