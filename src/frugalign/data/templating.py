"""From prompts and conversations to text and token ids: chat templates applied, lengths checked, cuts counted."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from frugalign.base.errors import FrugalignError
from frugalign.base.progress import ENCODED, advance, work
from frugalign.data.chat_template import ChatTemplate, first_time
from frugalign.data.on_disk import ROWS, kept_table
from frugalign.data.row_parts import parts
from frugalign.data.stored_lists import StoredLists

if TYPE_CHECKING:
    import pyarrow as pa
    from transformers import PreTrainedTokenizerBase

_log = logging.getLogger(__name__)

Message = dict[str, Any]
Prompt = str | list[Message]
PromptFormat = Literal["auto", "raw", "chat"]


@dataclass(frozen=True)
class Rendering:
    """How conversations become text.

    `prompt_format`: a string prompt is one user turn if there is a chat template (`auto`), unchanged text (`raw`), or a
    user turn that requires a template (`chat`). `chat_template_kwargs`: arguments of the template.
    """

    prompt_format: str = "auto"
    chat_template_kwargs: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, options: Any) -> Rendering:
        """The rendering that options or an artefact's config describe. None stands for the default."""
        return cls(options.prompt_format or "auto", options.chat_template_kwargs or {})


AUTO = Rendering()


@dataclass(frozen=True)
class EncodedPrompts:
    """`ids[i]`: the tokens of prompt i, without padding; `n_cut`: how many were cut on the left."""

    ids: Sequence[list[int]]
    n_cut: int


def is_chat(prompt: Prompt, tokenizer: PreTrainedTokenizerBase, rendering: Rendering = AUTO) -> bool:
    """Whether a prompt goes through the chat template. Messages always do. Strings do if the format is `chat`, or
    `auto` and the tokenizer has a template."""
    prompt_format = rendering.prompt_format
    if not isinstance(prompt, str) or prompt_format == "chat":
        return True
    if prompt_format not in ("auto", "raw"):
        raise FrugalignError(f"prompt_format is {prompt_format!r}; it must be auto, raw or chat.")
    return prompt_format == "auto" and bool(tokenizer.chat_template)


def as_messages(prompt: Prompt) -> list[Message]:
    """A copy of the messages; a string is one user turn."""
    return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else [dict(message) for message in prompt]


def conversation(prompt: Prompt, answer: Any) -> list[Message]:
    """The messages of a prompt with its answer, which is a string or messages. A prompt that ends with the assistant
    begins the answer.

    Raises:
        FrugalignError: the answer does not end with the assistant.
    """
    messages = as_messages(prompt)
    turns = (
        [{"role": "assistant", "content": answer}] if isinstance(answer, str) else [dict(message) for message in answer]
    )
    if not turns or turns[-1].get("role") != "assistant":
        raise FrugalignError("The answer does not end with the assistant's message.")
    if messages[-1]["role"] == turns[0]["role"] == "assistant":
        begun = messages.pop()
        turns[0] = {**begun, **turns[0], "content": f"{begun['content']}{turns[0]['content']}"}
    return messages + turns


def render_prompt(prompt: Prompt, tokenizer: PreTrainedTokenizerBase, rendering: Rendering = AUTO) -> str:
    """The text that a model continues.

    A string is rendered as `rendering` says. Messages always go through the template. A final assistant message is left
    open for the model to continue, as in TRL.

    Raises:
        FrugalignError: a required template is missing, or the template rejects these messages.
    """
    if not is_chat(prompt, tokenizer, rendering):
        assert isinstance(prompt, str)
        return prompt
    return open_turn(as_messages(prompt), ChatTemplate(tokenizer, rendering.chat_template_kwargs))


def open_turn(messages: list[Message], template: ChatTemplate) -> str:
    """Messages up to where the assistant writes. A final assistant message is left open."""
    begun = messages[-1]["role"] == "assistant"
    return template.render(messages, add_generation_prompt=not begun, continue_final_message=begun)


def encode_prompts(
    prompts: Sequence[Prompt],
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_prompt_length: int | None = None,
    max_context: int | None = None,
    max_new_tokens: int,
    rendering: Rendering = AUTO,
    key: str | None = None,
) -> EncodedPrompts:
    """Token ids of every prompt, with room for up to `max_new_tokens` tokens more.

    A template writes its own special tokens, so none are added to its text. Raw text gets those that the tokenizer puts
    before a text, once. It gets none after it, since an answer follows. An empty prompt becomes the BOS token.
    `max_prompt_length` keeps only the last tokens of a longer prompt; cuts are counted and logged. The ids of many prompts are on the
    disk; those under `key` stay there for the next call.

    Raises:
        FrugalignError: a prompt exceeds `max_context` with `max_new_tokens`, has no tokens, or is rejected by the
            template. The message names the row (from 1).
    """
    encoder = PromptEncoder(tokenizer, rendering, max_prompt_length, max_context, max_new_tokens)
    ids: Sequence[list[int]]
    if len(prompts) <= ROWS:
        ids, cut = encoder(list(prompts))
        n_cut = sum(cut)
    else:
        import pyarrow.compute as pc

        table = kept_table(key, lambda: encoder.tables(prompts))
        ids, n_cut = StoredLists(table.column("ids")), pc.sum(table.column("cut")).as_py()
    if n_cut:
        _log.warning(
            "Cut %d of %d prompts on the left to max_prompt_length = %d tokens.", n_cut, len(ids), max_prompt_length
        )
    return EncodedPrompts(ids, n_cut)


@dataclass(frozen=True)
class PromptEncoder:
    """Encodes prompts, as `encode_prompts` says."""

    tokenizer: PreTrainedTokenizerBase
    rendering: Rendering = AUTO
    max_prompt_length: int | None = None
    max_context: int | None = None
    max_new_tokens: int = 0

    def tables(self, prompts: Sequence[Prompt]) -> Iterator[pa.Table]:
        """The ids of many prompts and whether each was cut, a part at a time."""
        import pyarrow as pa

        first = 0
        with work("encoding the prompts", len(prompts), ENCODED):
            for part in parts(prompts):
                ids, cut = self(part, first)
                yield pa.table({"ids": pa.array(ids, type=pa.list_(pa.int64())), "cut": pa.array(cut)})
                first += len(part)
                advance(ENCODED, len(part))

    def __call__(self, prompts: Sequence[Prompt], first: int = 0) -> tuple[list[list[int]], list[bool]]:
        """The ids, and whether each prompt was cut. `first`: the number of the first prompt, from 0."""
        tokenizer = self.tokenizer
        template = ChatTemplate(tokenizer, self.rendering.chat_template_kwargs)
        chat: set[int] = set()
        texts: list[str] = []
        for row, prompt in enumerate(prompts):
            try:
                if is_chat(prompt, tokenizer, self.rendering):
                    chat.add(row)
                    texts.append(open_turn(as_messages(prompt), template))
                else:
                    texts.append(str(prompt))
            except FrugalignError as error:
                raise FrugalignError(f"Prompt {first + row + 1}: {error}") from error
        if chat:
            _warn_of_rendered_prompts([prompts[row] for row in chat], template)
        ids = token_ids(texts, tokenizer, chat)
        cut = [False] * len(ids)
        for row, tokens in enumerate(ids):
            ids[row], cut[row] = self._fitting(tokens, f"Prompt {first + row + 1}")
        return ids, cut

    def _fitting(self, tokens: list[int], named: str) -> tuple[list[int], bool]:
        """The ids that are read of a prompt's, and whether it was cut."""
        longest, is_cut = self.max_prompt_length, False
        if not tokens:
            if self.tokenizer.bos_token_id is None:
                raise FrugalignError(f"{named} has no tokens, and the tokenizer has no BOS token to start from.")
            tokens = [int(self.tokenizer.bos_token_id)]
        elif longest is not None and len(tokens) > longest:
            tokens, is_cut = tokens[len(tokens) - longest :], True
        if self.max_context is not None and len(tokens) + self.max_new_tokens > self.max_context:
            raise FrugalignError(
                f"{named} has {len(tokens)} tokens, and with max_new_tokens = {self.max_new_tokens} that exceeds "
                f"the model's context of {self.max_context}; set max_prompt_length to cut on the left, or lower "
                "max_new_tokens."
            )
        return tokens, is_cut


def token_ids(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, chat: Collection[int] = ()) -> list[list[int]]:
    """Token ids of rendered texts. All rows but `chat`, whose template wrote special tokens, begin with the tokenizer's
    own (BOS), once."""
    if not texts:  # a tokenizer refuses an empty batch
        return []
    leading = _leading_ids(tokenizer) if len(chat) < len(texts) else []
    found = []
    for row, ids in enumerate(_plain_ids(texts, tokenizer)):
        begins = row in chat or ids[: len(leading)] == leading
        found.append(ids if begins else leading + ids)
    return found


def _plain_ids(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    encoded = tokenizer(list(texts), add_special_tokens=False, padding=False, truncation=False, verbose=False)
    return [[int(token) for token in ids] for ids in encoded["input_ids"]]


def _leading_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The special tokens that the tokenizer puts before a text. Some put others after it."""
    (plain,) = _plain_ids(["a"], tokenizer)
    whole = [int(token) for token in tokenizer(["a"], verbose=False)["input_ids"][0]]
    starts = [place for place in range(len(whole)) if plain and whole[place : place + len(plain)] == plain]
    return whole[: starts[0]] if starts else []


def _warn_of_rendered_prompts(prompts: Sequence[Prompt], template: ChatTemplate) -> None:
    """Warn once if prompts hold what the template writes, as prompts that are rendered already do."""
    marks = template.marks
    contents = [[message.get("content") for message in as_messages(prompt)] for prompt in prompts]
    held = [{mark for mark in marks for text in texts if isinstance(text, str) and mark in text} for texts in contents]
    n_rendered = sum(map(bool, held))
    if n_rendered and first_time(template.tokenizer, "rendered prompts"):
        mark = next(mark for mark in marks for found in held if mark in found)
        _log.warning(
            "%d of %d prompts hold %r, which the chat template writes itself: they look rendered already, and the template "
            "wraps them once more. Give the plain text, or prompt_format raw.",
            n_rendered,
            len(prompts),
            mark,
        )
