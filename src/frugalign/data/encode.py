"""Encode a prompt and its answer as token ids that end where a reward reads them.

Training a reward, scoring with it and aligning by it share this definition. The ids are the rendered prompt, the
answer's tokens and the end token. Whatever a chat template writes after the end token is left out. A generated answer
that was cut has no end token.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from frugalign.base.errors import FrugalignError
from frugalign.data.templating import encode_prompts

_log = logging.getLogger(__name__)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class EncodedCompletions:
    """`prompt_ids[i]` and `completion_ids[i]`, end token included. `n_cut`: how many rows were cut on the left to
    fit."""

    prompt_ids: list[list[int]]
    completion_ids: list[list[int]]
    n_cut: int

    @property
    def ids(self) -> list[list[int]]:
        """Prompt and completion joined. The last token is the endpoint."""
        return [prompt + answer for prompt, answer in zip(self.prompt_ids, self.completion_ids, strict=True)]


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
    prompts: Sequence[Any],
    completions: Sequence[Any],
    tokenizer: PreTrainedTokenizerBase,
    *,
    end_id: int | None,
    completion_ids: Sequence[Sequence[int]] | None = None,
    max_length: int | None = None,
    prompt_format: str = "auto",
) -> EncodedCompletions:
    """Token ids of every prompt and its completion.

    Args:
        end_id: the token that closes an answer given as text, or None.
        completion_ids: ids that a model generated, used as they are; they include the end token if it was emitted.
        max_length: maximum tokens of prompt plus completion. A longer row is cut on the left, counted and logged. If
            the answer alone is too long, the prompt and the beginning of the answer are lost.

    Raises:
        FrugalignError: an answer has no tokens; the message names the row (from 1).
    """
    prompt_ids = encode_prompts(prompts, tokenizer, max_new_tokens=0, prompt_format=prompt_format).ids
    if completion_ids is None:
        texts = [answer_text(completion) for completion in completions]
        # A tokenizer refuses an empty batch.
        encoded = tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"] if texts else []
        end = [] if end_id is None else [end_id]
        answers = [[int(token) for token in ids] + end for ids in encoded]
    else:
        answers = [[int(token) for token in ids] for ids in completion_ids]
    n_cut = 0
    for row, (prompt, answer) in enumerate(zip(prompt_ids, answers, strict=True)):
        if not answer:
            raise FrugalignError(f"Answer {row + 1} has no tokens, so there is nothing to score.")
        if max_length is None or len(prompt) + len(answer) <= max_length:
            continue
        n_cut += 1
        over = len(prompt) + len(answer) - max_length
        prompt_ids[row], answers[row] = prompt[over:], answer[max(0, over - len(prompt)) :]
    if n_cut:
        _log.warning("Cut %d of %d sequences on the left to %d tokens.", n_cut, len(answers), max_length)
    return EncodedCompletions(prompt_ids, answers, n_cut)
