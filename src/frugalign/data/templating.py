"""From prompts to token ids: chat templates applied, lengths checked, cuts counted."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from frugalign.base.errors import FrugalignError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_log = logging.getLogger(__name__)

Prompt = str | list[dict[str, Any]]
PromptFormat = Literal["auto", "raw", "chat"]


@dataclass(frozen=True)
class EncodedPrompts:
    """`ids[i]`: the tokens of prompt i, without padding; `n_cut`: how many were cut on the left."""

    ids: list[list[int]]
    n_cut: int


def is_chat(prompt: Prompt, tokenizer: PreTrainedTokenizerBase, prompt_format: str = "auto") -> bool:
    """Whether a prompt goes through the chat template. Messages always do. Strings do if the format is `chat`, or
    `auto` and the tokenizer has a template."""
    if not isinstance(prompt, str) or prompt_format == "chat":
        return True
    if prompt_format not in ("auto", "raw"):
        raise FrugalignError(f"prompt_format is {prompt_format!r}; it must be auto, raw or chat.")
    return prompt_format == "auto" and bool(tokenizer.chat_template)


def render_prompt(prompt: Prompt, tokenizer: PreTrainedTokenizerBase, prompt_format: str = "auto") -> str:
    """The text that a model continues.

    A string becomes one user turn if the tokenizer has a chat template (`auto`), stays as it is (`raw`), or requires
    a template (`chat`). Messages always go through the template. A final assistant message is left open for the model
    to continue, as in TRL.

    Raises:
        FrugalignError: a required template is missing, or the template rejects these messages.
    """
    if not is_chat(prompt, tokenizer, prompt_format):
        assert isinstance(prompt, str)
        return prompt
    messages = (
        [{"role": "user", "content": prompt}] if isinstance(prompt, str) else [dict(message) for message in prompt]
    )
    open_turn = messages[-1]["role"] == "assistant"
    return apply_template(messages, tokenizer, add_generation_prompt=not open_turn, continue_final_message=open_turn)


def apply_template(messages: list[dict[str, Any]], tokenizer: PreTrainedTokenizerBase, **options: Any) -> str:
    """Render messages as text. A template error becomes one sentence."""
    if not tokenizer.chat_template:
        raise FrugalignError(
            "The prompts are messages, but the tokenizer has no chat template; use string prompts or prompt_format raw."
        )
    try:
        return str(tokenizer.apply_chat_template(messages, tokenize=False, **options))
    except Exception as error:  # jinja2's errors, and those of a template's raise_exception
        raise FrugalignError(
            f"The chat template refuses the messages: {' '.join(str(error).split()).rstrip('.')}."
        ) from error


def encode_prompts(
    prompts: Sequence[Prompt],
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_prompt_length: int | None = None,
    max_context: int | None = None,
    max_new_tokens: int,
    prompt_format: str = "auto",
) -> EncodedPrompts:
    """Token ids of every prompt, with room for up to `max_new_tokens` tokens more.

    A template writes its own special tokens, so none are added to its text. Raw text gets the tokenizer's usual ones.
    An empty prompt becomes the BOS token. `max_prompt_length` keeps only the last tokens of a longer prompt; cuts are
    counted and logged.

    Raises:
        FrugalignError: a prompt exceeds `max_context` with `max_new_tokens`, has no tokens, or is rejected by the
            template. The message names the row (from 1).
    """
    rows = list(prompts)
    chat: list[int] = []
    texts: list[str] = []
    for row, prompt in enumerate(rows):
        try:
            if is_chat(prompt, tokenizer, prompt_format):
                chat.append(row)
            texts.append(render_prompt(prompt, tokenizer, prompt_format))
        except FrugalignError as error:
            raise FrugalignError(f"Prompt {row + 1}: {error}") from error
    ids = _tokenise(texts, chat, tokenizer)
    n_cut = 0
    for row, tokens in enumerate(ids):
        if not tokens:
            if tokenizer.bos_token_id is None:
                raise FrugalignError(
                    f"Prompt {row + 1} has no tokens, and the tokenizer has no BOS token to start from."
                )
            ids[row] = [int(tokenizer.bos_token_id)]
        elif max_prompt_length is not None and len(tokens) > max_prompt_length:
            n_cut += 1
            ids[row] = tokens[len(tokens) - max_prompt_length :]
        if max_context is not None and len(ids[row]) + max_new_tokens > max_context:
            raise FrugalignError(
                f"Prompt {row + 1} has {len(ids[row])} tokens, and with max_new_tokens = {max_new_tokens} that exceeds "
                f"the model's context of {max_context}; set max_prompt_length to cut on the left, or lower "
                "max_new_tokens."
            )
    if n_cut:
        _log.warning(
            "Cut %d of %d prompts on the left to max_prompt_length = %d tokens.", n_cut, len(rows), max_prompt_length
        )
    return EncodedPrompts(ids, n_cut)


def _tokenise(texts: Sequence[str], chat: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """Token ids of rendered prompts. Special tokens are added to all rows but `chat`, whose template wrote them."""
    ids: list[list[int]] = [[] for _ in texts]
    for members, special in ((chat, False), (sorted(set(range(len(texts))) - set(chat)), True)):
        if members:
            encoded = tokenizer(
                [texts[row] for row in members],
                add_special_tokens=special,
                padding=False,
                truncation=False,
                verbose=False,
            )
            for row, tokens in zip(members, encoded["input_ids"], strict=True):
                ids[row] = [int(token) for token in tokens]
    return ids
