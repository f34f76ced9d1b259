"""Where a probe reads an answer: at its last sentence end (`docs/methods/representation-reward.md#what-the-probes-read`).

A truncated answer ends anywhere, and the score there is mostly noise. The state at the last sentence end does not depend
on where the answer was cut after it. `SentenceEnds.last` decides for whole answers, and the decoding loop asks token by
token. Both need token ids only.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MARKS = ".!?…‥。！？．｡؟۔।॥։።፧။។៕⸮‼⁇⁈⁉"
"""Full stops, question and exclamation marks, and ellipses of many scripts."""
_CLOSERS = re.escape("\"'”’»›)]}*_`」』）】》〉")
_END = re.compile(rf"[{MARKS}][{_CLOSERS}]*\s*$")


@dataclass(frozen=True)
class SentenceEnds:
    """The tokens of one tokenizer that end a sentence.

    `table [V]`: whether a token does so alone, bool. `spelled [S, W]`: the marks that take several tokens, such as the
    bytes of "。", with −1 on the left of the shorter ones.
    """

    table: Tensor
    spelled: Tensor

    @property
    def width(self) -> int:
        """The most tokens that one mark takes."""
        return max(1, self.spelled.shape[1])

    def to(self, device: torch.device) -> SentenceEnds:
        return SentenceEnds(self.table.to(device), self.spelled.to(device))

    def __call__(self, ids: Tensor) -> Tensor:
        """Whether a sentence ends with each token of `ids [M, T]`, bool `[M, T]`. A negative id is padding."""
        found = self._alone(ids)
        if len(self.spelled):
            may_end = torch.isin(ids, self.spelled[:, -1])
            if bool(may_end.any()):
                before = ids.new_full((len(ids), self.width - 1), -1)
                windows = torch.cat([before, ids], 1).unfold(1, self.width, 1)[may_end]
                spelled = ((windows[:, None] == self.spelled) | (self.spelled < 0)).all(-1).any(-1)
                found[may_end] |= spelled
        return found

    def _alone(self, ids: Tensor) -> Tensor:
        known = ids.clamp(0, len(self.table) - 1)
        return self.table[known] & (ids == known)

    def at_end(self, recent: Tensor) -> Tensor:
        """Whether a sentence ends with the last token of `recent [M, width]`, bool `[M]`. A negative id is padding."""
        found = self._alone(recent[:, -1])
        if len(self.spelled):
            found = found | ((recent[:, None] == self.spelled) | (self.spelled < 0)).all(-1).any(-1)
        return found

    def last(self, ids: Tensor, is_answer: Tensor) -> Tensor:
        """The position of each row's last sentence end inside its answer, int64 `[M]`; without one, of its last token.

        Args:
            ids: `[M, T]`.
            is_answer: bool `[M, T]`, at least one token a row.
        """
        places = torch.arange(ids.shape[1], device=ids.device)
        at_end = self(torch.where(is_answer, ids, -1)) & is_answer
        final, ended = (is_answer * places).argmax(1), (at_end * places).argmax(1)
        return torch.where(at_end.any(1), ended, final)

    def read(self, prompt: Sequence[int], answer: Sequence[int]) -> list[int]:
        """The tokens up to the one whose state is read: the prompt, and the answer up to its last sentence end."""
        ids = torch.tensor([list(answer)])
        return [*prompt, *answer[: int(self.last(ids, torch.ones_like(ids, dtype=torch.bool))) + 1]]


_FOUND: WeakKeyDictionary[PreTrainedTokenizerBase, SentenceEnds] = WeakKeyDictionary()


def sentence_ends(tokenizer: PreTrainedTokenizerBase) -> SentenceEnds:
    """The tokens that end a sentence, found once per tokenizer.

    A token does if its text ends with one of `MARKS`; closing quotes and brackets, emphasis and white space may follow.
    Special tokens never do.
    """
    if tokenizer not in _FOUND:
        special, tokens = set(tokenizer.all_special_ids), sorted(tokenizer.get_vocab().values())
        table = torch.zeros(max(tokens) + 1, dtype=torch.bool)
        for token, text in zip(tokens, tokenizer.batch_decode([[token] for token in tokens]), strict=True):
            table[token] = token not in special and _END.search(text) is not None
        rows = list(_spelled(tokenizer))
        width = max(map(len, rows), default=0)
        spelled = torch.tensor([[-1] * (width - len(row)) + row for row in rows], dtype=torch.long)
        _FOUND[tokenizer] = SentenceEnds(table, spelled.reshape(len(rows), width))
    return _FOUND[tokenizer]


def _spelled(tokenizer: PreTrainedTokenizerBase) -> Iterator[list[int]]:
    """The token ids of each mark that takes several tokens."""
    (letter, *texts) = tokenizer(["x", *(f"x{mark}" for mark in MARKS)], add_special_tokens=False)["input_ids"]
    for ids in texts:
        rest = ids[len(letter) :]
        if ids[: len(letter)] == letter and len(rest) > 1 and tokenizer.unk_token_id not in rest:
            yield rest
