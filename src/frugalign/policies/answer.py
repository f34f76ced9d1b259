"""Answer single prompts with a policy, and show which proposals a proxy turned down on the way."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from rich.text import Text
from transformers import PreTrainedTokenizerBase

from frugalign.data import encode_prompts
from frugalign.decoding.chooser import TokenTrace
from frugalign.decoding.loop import SamplingParams, Step, generate
from frugalign.decoding.noise import row_keys
from frugalign.engines.loading import LoadedModel, context_length
from frugalign.policies.policy import Policy, load_base, load_policy

DEFAULT_NEW_TOKENS = 256


@dataclass(frozen=True)
class Answer:
    """One completion: its text, its token ids, and the proposals behind each token."""

    text: str
    ids: list[int]
    ended: bool
    trace: list[TokenTrace]


class Completer:
    """A model with or without a proxy, answering one prompt at a time.

    Raises:
        FrugalignError: as `load_model` and `load_policy` do.
    """

    def __init__(
        self,
        model_name_or_path: str,
        *,
        proxy: str | None = None,
        adapter: str | None = None,
        strength: float = 1.0,
        revision: str | None = None,
        dtype: str | None = None,
        device_map: str | None = None,
        load_in_4bit: bool = False,
    ) -> None:
        self.base: LoadedModel = load_base(
            model_name_or_path,
            proxy=proxy,
            revision=revision,
            dtype=dtype,
            device_map=device_map,
            load_in_4bit=load_in_4bit,
        )
        self.policy: Policy = load_policy(self.base, proxy=proxy, adapter=adapter, strength=strength)

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The base's tokenizer."""
        return self.base.tokenizer

    def fitting(self, messages: list[dict[str, Any]], keep: int = 0) -> list[dict[str, Any]]:
        """A conversation without its oldest turns, as many as it takes to leave an eighth of the context to the answer.

        The first `keep` messages (a system message) and the last one stay.
        """
        context = context_length(self.base.model)
        start, rest = messages[:keep], messages[keep:]
        while context is not None and len(rest) > 2:
            length = len(encode_prompts([start + rest], self.tokenizer, max_new_tokens=1).ids[0])
            if length <= context - context // 8:
                break
            rest = rest[2:]
        return start + rest

    def answer(
        self,
        prompt: str | list[dict[str, Any]],
        *,
        max_new_tokens: int | None = None,
        temperature: float | None = None,
        do_sample: bool = True,
        seed: int = 0,
        turn: int = 0,
        prompt_format: str | None = None,
        max_prompt_length: int | None = None,
        on_text: Callable[[str], None] | None = None,
    ) -> Answer:
        """Complete a string or a conversation.

        Args:
            max_new_tokens, prompt_format, max_prompt_length: default to the proxy's, else 256, "auto" and no cut.
            temperature: of the base; a proxy brings its own.
            turn: number of the answer in a conversation, so that equal questions get fresh noise.
            on_text: called with every new piece of text as it is generated.
        """
        artefact = self.policy.artefact
        limit = max_new_tokens or (artefact.max_new_tokens if artefact is not None else DEFAULT_NEW_TOKENS)
        context = context_length(self.base.model)
        encoded = encode_prompts(
            [prompt],
            self.tokenizer,
            max_prompt_length=max_prompt_length or (artefact.max_prompt_length if artefact is not None else None),
            max_context=context,
            # Only a length that was asked for has to fit whole; the default one gives way to the context.
            max_new_tokens=max_new_tokens or 1,
            prompt_format=prompt_format or (artefact.prompt_format if artefact is not None else "auto"),
        )
        if context is not None:
            limit = min(limit, context - len(encoded.ids[0]))
        stream = _Stream(self.tokenizer, on_text) if on_text is not None else None
        found = generate(
            self.policy.model,
            self.tokenizer,
            encoded.ids,
            SamplingParams(limit, temperature or 1.0, do_sample),
            keys=row_keys(seed, turn, [0], [0]),
            guide=self.policy.guide,
            observer=stream,
            record_trace=True,
        )
        assert found.traces is not None
        text = self.tokenizer.decode(found.completion_ids[0], skip_special_tokens=True)
        if on_text is not None and stream is not None and len(text) > stream.shown:
            on_text(str(text)[stream.shown :])  # cut in the middle of a character
        return Answer(str(text), found.completion_ids[0], found.ended[0], found.traces[0])


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


def colour_trace(trace: Sequence[TokenTrace], tokenizer: PreTrainedTokenizerBase) -> Text:
    """A completion with what was proposed and rejected: accepted tokens green (yellow where the proxy was reluctant), the
    rejected proposals before each struck through in red; tokens that nothing was asked about stay plain."""
    text = Text()
    pieces = token_texts([entry.token for entry in trace], tokenizer)
    for entry, piece in zip(trace, pieces, strict=True):
        for token, times in Counter(token for token, _ in entry.rejected).items():
            text.append(str(tokenizer.decode([token])).strip() or "␣", style="red strike")
            text.append(f"×{times} " if times > 1 else " ", style="red")
        if entry.acceptance is None:
            text.append(piece)
        else:
            text.append(piece, style="green" if entry.acceptance >= 0.5 else "yellow")
    return text


def token_texts(ids: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """The text that each token adds to those before it: `len(ids)` strings that join to the decoded whole."""
    pieces, shown = [], ""
    for n in range(1, len(ids) + 1):
        whole = str(tokenizer.decode(list(ids[:n])))
        if whole.endswith("\ufffd") and n < len(ids):
            whole = shown
        pieces.append(whole[len(shown) :])
        shown = whole
    return pieces
