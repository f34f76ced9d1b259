"""Encode a prompt and its answer as token ids that end where a reward reads them.

Training, scoring, probes and evaluation share this definition. The ids are those of the whole conversation as the
model's chat template renders it, up to the token that ends the last turn. Without a template they are those of the
prompt's text with the answer's, and the end token. Whatever a template writes after the end token is left out.

A rendered prompt has the ids that sampling reads. Where the template opens a new answer otherwise than it writes a stored
one, as with a thought, the prompt ends where the two part. Text without a template is tokenised as a whole. A token that
reaches across the border belongs to the answer there.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from frugalign.base.errors import FrugalignError
from frugalign.data.chat_template import ChatTemplate, first_time
from frugalign.data.stored_lists import unclear_turns
from frugalign.data.templating import (
    AUTO,
    Message,
    Prompt,
    PromptEncoder,
    Rendering,
    as_messages,
    conversation,
    is_chat,
    open_turn,
    token_ids,
)

_log = logging.getLogger(__name__)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class EncodedCompletions:
    """`prompt_ids[i]` and `completion_ids[i]`, end token included. `n_cut`: how many rows were cut on the left to
    fit. `others`: by row, where turns of others stand within the answer, as `(start, stop)` in `ids[i]`; None: that is
    unclear. `first`: the number of the first row, from 0, for messages. `masks`: the masks of many answers, on the disk."""

    prompt_ids: Sequence[list[int]]
    completion_ids: Sequence[list[int]]
    n_cut: int = 0
    others: dict[int, list[tuple[int, int]] | None] = field(default_factory=dict)
    first: int = 0
    masks: Sequence[list[int]] | None = None

    @property
    def has_other_turns(self) -> bool:
        """Whether an answer holds turns that are not the assistant's."""
        return bool(self.others) or self.masks is not None

    @property
    def ids(self) -> list[list[int]]:
        """Prompt and completion joined. The last token is the endpoint."""
        return [prompt + answer for prompt, answer in zip(self.prompt_ids, self.completion_ids, strict=True)]

    @property
    def completion_masks(self) -> Sequence[list[int]]:
        """1 for the tokens of `completion_ids` that the assistant writes, 0 for those of other turns between its own.

        Raises:
            FrugalignError: a template does not show where the turns of an answer begin and end.
        """
        return self.masks if self.masks is not None else [self.mask(row) for row in range(len(self.completion_ids))]

    def mask(self, row: int) -> list[int]:
        """The mask of one answer."""
        mask = [1] * len(self.completion_ids[row])
        spans = self.others.get(row, [])
        if spans is None:
            raise FrugalignError(unclear_turns(self.first + row))
        first = len(self.prompt_ids[row])
        for start, stop in spans:
            for place in range(max(0, start - first), max(0, stop - first)):
                mask[place] = 0
        return mask

    def divided(self, lengths: Sequence[int]) -> EncodedCompletions:
        """The same ids, with `lengths[i]` tokens in prompt i."""
        if all(len(prompt) == length for prompt, length in zip(self.prompt_ids, lengths, strict=True)):
            return self
        rows = list(zip(self.ids, lengths, strict=True))
        prompts, answers = [ids[:length] for ids, length in rows], [ids[length:] for ids, length in rows]
        return replace(self, prompt_ids=prompts, completion_ids=answers)

    def cut(self, max_length: int | None) -> EncodedCompletions:
        """The same with at most `max_length` tokens a row. A longer row loses its beginning, which is counted. If the
        answer alone is too long, the prompt and the beginning of the answer are lost."""
        if max_length is None:
            return self
        both = zip(self.prompt_ids, self.completion_ids, strict=True)
        over = [max(0, len(prompt) + len(answer) - max_length) for prompt, answer in both]
        if not any(over):
            return self
        prompts = [ids[lost:] for ids, lost in zip(self.prompt_ids, over, strict=True)]
        answers = [
            answer[max(0, lost - len(prompt)) :]
            for prompt, answer, lost in zip(self.prompt_ids, self.completion_ids, over, strict=True)
        ]
        others = {
            row: spans and [(max(0, start - over[row]), max(0, stop - over[row])) for start, stop in spans]
            for row, spans in self.others.items()
        }
        return replace(self, prompt_ids=prompts, completion_ids=answers, n_cut=sum(map(bool, over)), others=others)


def say_cut(n_cut: int, total: int, max_length: int | None) -> None:
    """Log how many rows `EncodedCompletions.cut` has cut."""
    if n_cut:
        _log.warning("Cut %d of %d sequences on the left to %d tokens.", n_cut, total, max_length)


def answer_text(completion: Any) -> str:
    """A completion as text: itself, or the contents of its messages."""
    return completion if isinstance(completion, str) else "\n".join(message["content"] for message in completion)


def as_completions(prompts: Sequence[Any], texts: Sequence[str]) -> list[Any]:
    """Answers in the type of their prompts: strings, or message lists for message prompts. The inverse of
    `answer_text`."""
    return [
        text if isinstance(prompt, str) else [{"role": "assistant", "content": text}]
        for prompt, text in zip(prompts, texts, strict=True)
    ]


def encode_completions(
    prompts: Sequence[Prompt],
    completions: Sequence[Any],
    tokenizer: PreTrainedTokenizerBase,
    *,
    end_ids: Sequence[int] = (),
    completion_ids: Sequence[Sequence[int]] | None = None,
    rendering: Rendering = AUTO,
    first: int = 0,
) -> EncodedCompletions:
    """Token ids of every prompt and its completion.

    Args:
        completions: strings, or messages of which the last is the assistant's.
        end_ids: the tokens that end a completion. The first closes an answer whose template writes no end token.
        completion_ids: ids that a model generated, used as they are; they include the end token if it was emitted.
        first: the number of the first row, from 0, for messages.

    Raises:
        FrugalignError: an answer has no tokens, does not end with the assistant, or is rejected by the template; the
            message names the row (from 1).
    """
    prompt_ids, _ = PromptEncoder(tokenizer, rendering)(prompts, first)
    if completion_ids is None:
        template = ChatTemplate(tokenizer, rendering.chat_template_kwargs)
        found = _Answers(prompts, completions, template, end_ids, first).split(prompt_ids, rendering)
    else:
        found = EncodedCompletions(prompt_ids, [[int(token) for token in ids] for ids in completion_ids], first=first)
    for row, answer in enumerate(found.completion_ids):
        if not answer:
            raise FrugalignError(f"Answer {first + row + 1} has no tokens, so there is nothing to score.")
    return found


@dataclass(frozen=True)
class _Answers:
    """Stored answers, which are texts or messages, to their prompts."""

    prompts: Sequence[Prompt]
    answers: Sequence[Any]
    template: ChatTemplate
    end_ids: Sequence[int]
    first: int = 0

    def split(self, prompt_ids: Sequence[list[int]], rendering: Rendering) -> EncodedCompletions:
        """Encode every whole conversation, and split it where it stops being the prompt that sampling reads."""
        tokenizer = self.template.tokenizer
        chat = {row for row, prompt in enumerate(self.prompts) if is_chat(prompt, tokenizer, rendering)}
        end = self.template.end_of_turn(self.end_ids) if chat else None
        ends = {*self.end_ids} | ({end} if end is not None else set())
        texts = [self._text(row, row in chat, end) for row in range(len(self.prompts))]
        others: dict[int, list[tuple[int, int]] | None] = {}
        prompts, answers = list[list[int]](), list[list[int]]()
        for row, whole in enumerate(token_ids(texts, tokenizer, chat)):
            asked = prompt_ids[row]
            if self.prompts[row] == "" and whole[: len(asked)] != asked:
                whole = asked + whole  # the BOS token that stands for an empty prompt
            if row in chat:
                whole = self._with_sampled_prompt(row, asked, whole, texts[row])
                turns = self._other_turns(row, texts[row], end)
                if turns is None or turns:
                    until = partial(self._n_until, row=row, asked=asked, text=texts[row], whole=whole)
                    others[row] = turns and [(until(start), until(stop)) for start, stop in turns]
            n = _n_shared(asked, whole)
            answer = whole[n:]
            if not answer or answer[-1] not in ends:
                answer = answer + list(self.end_ids[:1])
            prompts.append(whole[:n])
            answers.append(answer)
        self._warn_of_rewritten_answers(texts, chat)
        return EncodedCompletions(prompts, answers, others=others, first=self.first)

    def _text(self, row: int, chat: bool, end: int | None) -> str:
        """Prompt and answer as text, up to the end of the last turn."""
        prompt, answer = self.prompts[row], self.answers[row]
        try:
            if chat:
                return self._conversation(conversation(prompt, answer), end)
            if not isinstance(answer, str) and len(answer) > 1:
                raise FrugalignError("It has several messages, which need a chat template.")
        except FrugalignError as error:
            raise FrugalignError(f"Answer {self.first + row + 1}: {error}") from error
        return f"{prompt}{answer_text(answer)}"

    def _conversation(self, messages: list[Message], end: int | None) -> str:
        template = self.template
        if end is None:
            text = template.render(messages)
            return text.removesuffix(template.after_answer)
        mark, content = template.text_of(end), messages[-1].get("content")
        if isinstance(content, str) and content.rstrip().endswith(mark):
            messages[-1]["content"] = content.rstrip().removesuffix(mark)  # an answer that was rendered before
        text = template.render(messages)
        place = text.rfind(mark)
        return text if place < 0 else text[: place + len(mark)]

    def _with_sampled_prompt(self, row: int, asked: list[int], whole: list[int], text: str) -> list[int]:
        """The ids of a conversation, with the prompt's as sampling reads them if its text is a prefix.

        Raises:
            FrugalignError: the template writes the prompt in another way than before the answer.
        """
        if whole[: len(asked)] == asked:
            return whole
        tokenizer, messages = self.template.tokenizer, as_messages(self.prompts[row])
        opened = open_turn(messages, self.template)
        if text.startswith(opened):
            # The tokenizer joins or parts characters at the border. A special token in front keeps it from doing so.
            mark = tokenizer.eos_token or tokenizer.bos_token or ""
            (rest,) = token_ids([mark + text[len(opened) :]], tokenizer, {0})
            divided = asked + rest[1:]
            return divided if tokenizer.decode(divided) == tokenizer.decode(whole) else whole
        if messages[-1]["role"] == "assistant":
            messages.pop()  # the turn that the answer continues
            opened = open_turn(messages, self.template) if messages else ""
        opening = self.template.before_answer
        if not text.startswith(opened[: len(opened) - _n_shared(opened[::-1], opening[::-1])]):
            raise FrugalignError(
                f"Answer {self.first + row + 1}: the chat template writes its prompt differently once the answer follows; put a system message "
                "into the first user message, and all turns but the last into the prompt."
            )
        return whole

    def _n_until(self, place: int, row: int, asked: list[int], text: str, whole: list[int]) -> int:
        """How many ids of a conversation stand before this place of its text."""
        (ids,) = token_ids([text[:place]], self.template.tokenizer, {0})
        return _n_shared(self._with_sampled_prompt(row, asked, ids, text[:place]), whole)

    def _other_turns(self, row: int, text: str, end: int | None) -> list[tuple[int, int]] | None:
        """Where the turns of others stand within an answer of several turns: `text[start:stop]`, openings included. None
        if the template does not show where a turn begins or ends."""
        if isinstance(self.answers[row], str) or len(self.answers[row]) < 2:
            return []
        messages = conversation(self.prompts[row], self.answers[row])
        first, found = len(messages) - len(self.answers[row]), list[tuple[int, int]]()
        for place in range(first + 1, len(messages)):
            if messages[place]["role"] != "assistant" or messages[place - 1]["role"] == "assistant":
                continue
            last = max(each for each in range(first, place) if messages[each]["role"] == "assistant")
            start = self._end_of_turn(messages[: last + 1], text, end)
            stop = _n_shared(open_turn(messages[:place], self.template), text)
            between = "".join(text[start:stop].split())
            if start < 0 or any("".join(each["content"].split()) not in between for each in messages[last + 1 : place]):
                return None
            found.append((start, stop))
        return found

    def _end_of_turn(self, messages: Sequence[Message], text: str, end: int | None) -> int:
        """Where the last of these messages ends in the text of a conversation that they begin. -1: that is not clear."""
        alone = self._conversation([dict(message) for message in messages], end)
        shared = _n_shared(alone, text)
        if shared == len(alone):
            return shared
        # The last turn is written otherwise than the same turn within a conversation, as with a thought.
        closing = messages[-1]["content"].strip() if end is None else self.template.text_of(end)
        place = text.find(closing, shared)
        return place if place < 0 else place + len(closing)

    def _warn_of_rewritten_answers(self, texts: Sequence[str], chat: set[int]) -> None:
        """Warn once if the template leaves out a part of answers, such as their thoughts."""
        rewritten = [row for row in sorted(chat) if not self._holds(texts[row], self.answers[row])]
        if rewritten and first_time(self.template.tokenizer, "rewritten answers"):
            _log.warning(
                "The chat template leaves out or changes a part of %d of %d answers, such as answer %d (a thought?). They are "
                "encoded as it renders them.",
                len(rewritten),
                len(texts),
                self.first + rewritten[0] + 1,
            )

    def _holds(self, text: str, answer: Any) -> bool:
        """Whether a rendered conversation has the answer's contents in full, white space aside."""
        written = "".join(text.split())
        contents = [answer] if isinstance(answer, str) else [message.get("content") for message in answer]
        return all("".join(each.split()) in written for each in contents if isinstance(each, str))


def _n_shared(first: Sequence[Any], second: Sequence[Any]) -> int:
    """The length of the longest common prefix."""
    differ = (place for place, (a, b) in enumerate(zip(first, second, strict=False)) if a != b)
    return next(differ, min(len(first), len(second)))
