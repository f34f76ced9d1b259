"""From a prompt and its answer to token ids that end where a judge of the answer reads.

One definition for training a reward, scoring with it and aligning by it: the prompt as a model is asked it, the answer's tokens, and
the end token; what a chat template writes after that is left out. A generated answer that was cut has no end token and ends in its last one.
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
    """`prompt_ids[i]` and `completion_ids[i]` (the end token included); `n_cut`: how many were cut on the left to fit."""

    prompt_ids: list[list[int]]
    completion_ids: list[list[int]]
    n_cut: int

    @property
    def ids(self) -> list[list[int]]:
        """Prompt and completion together; the last token is the endpoint."""
        return [prompt + answer for prompt, answer in zip(self.prompt_ids, self.completion_ids, strict=True)]


def answer_text(completion: Any) -> str:
    """A completion as text: itself, or the contents of its messages."""
    return completion if isinstance(completion, str) else "\n".join(message["content"] for message in completion)


def as_completions(prompts: Sequence[Any], texts: Sequence[str]) -> list[Any]:
    """Answers in the type of their prompts: strings, or message lists for messages. The reverse of `answer_text`."""
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
    """Token ids of every exchange.

    Args:
        end_id: the token that closes an answer given as text; None where the model has none.
        completion_ids: what a model generated, taken as it is, the end token included where it was emitted.
        max_length: the most tokens of an exchange; a longer one is cut on the left, counted and logged. An answer that is longer
            by itself loses its prompt and its beginning.

    Raises:
        FrugalignError: an answer without a token, naming the row (from 1).
    """
    prompt_ids = encode_prompts(prompts, tokenizer, max_new_tokens=0, prompt_format=prompt_format).ids
    if completion_ids is None:
        texts = [answer_text(completion) for completion in completions]
        # Empty lists too: a tokenizer refuses a batch of none.
        encoded = tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"] if texts else []
        end = [] if end_id is None else [end_id]
        answers = [[int(token) for token in ids] + end for ids in encoded]
    else:
        answers = [[int(token) for token in ids] for ids in completion_ids]
    n_cut = 0
    for row, (prompt, answer) in enumerate(zip(prompt_ids, answers, strict=True)):
        if not answer:
            raise FrugalignError(f"Answer {row + 1} has no token, so there is nothing to judge.")
        if max_length is None or len(prompt) + len(answer) <= max_length:
            continue
        n_cut += 1
        over = len(prompt) + len(answer) - max_length
        prompt_ids[row], answers[row] = prompt[over:], answer[max(0, over - len(prompt)) :]
    if n_cut:
        _log.warning("Cut %d of %d exchanges on the left to %d tokens.", n_cut, len(answers), max_length)
    return EncodedCompletions(prompt_ids, answers, n_cut)
