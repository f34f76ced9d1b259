"""A tokenizer's chat template with its arguments, and what it writes around the contents of messages.

What a template writes is found by rendering a sample conversation, so it holds for any template.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from frugalign.base.errors import FrugalignError
from frugalign.base.template_arguments import NO_OTHER_TEMPLATE, SET_HERE

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_MARK = "a mark that no template writes by itself"
_SAMPLE = [{"role": "user", "content": _MARK}, {"role": "assistant", "content": _MARK}]


class ChatTemplate:
    """The chat template of `tokenizer`, rendered with `arguments` (`chat_template_kwargs`)."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, arguments: Mapping[str, Any] | None = None) -> None:
        self.tokenizer = tokenizer
        self.arguments = dict(arguments or {})

    def render(self, messages: list[dict[str, Any]], **options: Any) -> str:
        """Messages as text. `options` are those of transformers' `apply_chat_template`.

        Raises:
            FrugalignError: there is no template, it does not read one of the arguments, or it refuses the messages.
        """
        self._check_arguments()
        if any(message.get("role") == "system" for message in messages) and not self.has_system_role:
            raise FrugalignError(
                "The chat template has no place for a system message; begin the first user message with its text instead."
            )
        return self._render(messages, **options)

    def _render(self, messages: list[dict[str, Any]], **options: Any) -> str:
        try:
            return str(self.tokenizer.apply_chat_template(messages, tokenize=False, **options, **self.arguments))
        except Exception as error:  # jinja2's errors, and those of a template's raise_exception
            raise FrugalignError(
                f"The chat template refuses the messages: {' '.join(str(error).split()).rstrip('.')}."
            ) from error

    def _check_arguments(self) -> None:
        source = self.tokenizer.chat_template
        if not source:
            raise FrugalignError(
                "The prompts are messages, but the tokenizer has no chat template; use string prompts or prompt_format raw."
            )
        text = source if isinstance(source, str) else "\n".join(map(str, source.values()))
        for name in self.arguments:
            if name == "chat_template":
                raise FrugalignError(f"chat_template_kwargs sets chat_template: {NO_OTHER_TEMPLATE}.")
            if name in SET_HERE:
                raise FrugalignError(f"chat_template_kwargs sets {name}, which rendering sets itself.")
            # transformers' own arguments need not be named in the template.
            if name not in ("tools", "documents") and not re.search(rf"\b{re.escape(name)}\b", text):
                raise FrugalignError(f"chat_template_kwargs sets {name}, which the chat template does not read.")

    @cached_property
    def has_system_role(self) -> bool:
        """Whether the template writes a system message. Some templates refuse it, some drop it silently.

        Raises:
            FrugalignError: there is no template.
        """
        self._check_arguments()
        messages = [{"role": "system", "content": _MARK}, {"role": "user", "content": "-"}]
        try:
            return _MARK in self._render(messages, add_generation_prompt=True)
        except FrugalignError:
            return False

    def end_of_turn(self, known: Collection[int] = ()) -> int | None:
        """The token that ends an assistant's turn: the first special token after its content.

        Args:
            known: tokens that end a completion. They count even if the tokenizer does not call them special.

        Returns:
            None if the template writes no such token.
        """
        tokenizer = self.tokenizer
        ids = tokenizer(self.after_answer, add_special_tokens=False, verbose=False)["input_ids"]
        special = {*tokenizer.all_special_ids, *known} - {tokenizer.unk_token_id}
        special |= {token for token, added in _added_tokens(tokenizer).items() if added.special}
        return next((int(token) for token in ids if token in special), None)

    @cached_property
    def after_answer(self) -> str:
        """What the template writes after the last assistant's content."""
        return self._sample.rpartition(_MARK)[2]

    @cached_property
    def before_answer(self) -> str:
        """What the template writes between the last user's content and a new answer."""
        return self._render([dict(_SAMPLE[0])], add_generation_prompt=True).rpartition(_MARK)[2]

    @cached_property
    def marks(self) -> list[str]:
        """Texts that the template writes and that prompts do not hold: its added tokens, and the assistant's opening."""
        added = {token.content for token in _added_tokens(self.tokenizer).values()}
        written = sorted(text for text in added if text.strip() and text in self._sample)
        opening = self.before_answer.strip()
        return written + [opening] * (len(opening) > 2)

    def text_of(self, token: int) -> str:
        """A special token as it stands in rendered text."""
        added = _added_tokens(self.tokenizer).get(token)
        return str(added.content if added is not None else self.tokenizer.decode([token])).strip()

    @cached_property
    def _sample(self) -> str:
        return self._render([dict(message) for message in _SAMPLE])


def end_of_turn(tokenizer: PreTrainedTokenizerBase, known: Collection[int] = ()) -> int | None:
    """The token that ends an assistant's turn by the tokenizer's chat template. None without a template or such a token."""
    if not getattr(tokenizer, "chat_template", None):
        return None
    try:
        return ChatTemplate(tokenizer).end_of_turn(known)
    except FrugalignError:  # a template that refuses the sample conversation
        return None


def _added_tokens(tokenizer: PreTrainedTokenizerBase) -> dict[int, Any]:
    found: dict[int, Any] = tokenizer.added_tokens_decoder
    return found


_SAID: WeakKeyDictionary[Any, set[str]] = WeakKeyDictionary()


def first_time(tokenizer: PreTrainedTokenizerBase, subject: str) -> bool:
    """Whether nothing has been said about `subject` and this tokenizer yet. Data is encoded batch by batch."""
    said = _SAID.setdefault(tokenizer, set())
    if subject in said:
        return False
    said.add(subject)
    return True
