"""Answers that begin with the text of their prompt: texts that hold both, or answers that quote it.

One row does not tell which of the two it is, the column does. If all answers of a column begin so, they hold their
prompt, which is read once. If most do, or a few beside another column where all do, the file mixes both and is refused.
If a few do, they are quotes.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from frugalign.data.rows import Problem
from frugalign.data.standard import Row


class RepeatedPrompts:
    """Counts the answers of one file that begin with their prompt, by column."""

    def __init__(self, names: Sequence[str]) -> None:
        self._n_rows = 0
        self._counts = dict.fromkeys(names, 0)
        self._first_other: dict[str, int] = {}

    def note(self, row: Row, number: int) -> None:
        """Count a standardised row, whose number is `number`."""
        self._n_rows += 1
        for name in self._counts:
            if without_prompt(row[name], row["prompt"]) is not None:
                self._counts[name] += 1
            else:
                self._first_other.setdefault(name, number)

    def whole(self, elsewhere: Collection[str] = ()) -> list[str]:
        """The columns whose answers all hold their prompt. One row counts for those that do so in other files."""
        all_rows = (name for name, count in self._counts.items() if 0 < count == self._n_rows)
        return [name for name in all_rows if self._n_rows > 1 or name in elsewhere]

    def problems(self, file: str, whole: Collection[str]) -> list[Problem]:
        """The columns that may or may not hold the prompts. `whole`: those that do."""
        found = []
        for name, count in self._counts.items():
            if name in whole:
                continue
            if self._n_rows == count:
                reason = f"`{name}` begins with the prompt in the only row; leave the prompt out of it"
                found.append(Problem(file, None, reason))
            elif count > (0 if whole else self._n_rows / 2):
                reason = (
                    f"`{name}` does not begin with the prompt, as it does in {count:,} of {self._n_rows:,} rows; leave the "
                    "prompt out of all answers, or of none"
                )
                found.append(Problem(file, self._first_other[name], reason))
        return found

    def warnings(self, file: str, whole: Sequence[str]) -> list[str]:
        """What was read once, and what was taken for quotes."""
        found = []
        if whole:
            found.append(f"{file}: {_begins(whole)} with the prompt in every row; it is read once.")
        for name, count in self._counts.items():
            if 0 < count <= self._n_rows / 2 and not whole:
                rows = f"{count:,} of {self._n_rows:,} rows"
                found.append(
                    f"{file}: {_begins([name])} with the prompt in {rows}; these answers are left as they are."
                )
        return found


def without_prompt(answer: Any, prompt: Any) -> Any:
    """The answer without the prompt's text at its start, both as text or messages. None if it does not begin so, or if
    nothing follows. White space around the prompt may differ."""
    if not isinstance(answer, str):
        rest = without_prompt(answer[0]["content"], prompt)
        return None if rest is None else [{**answer[0], "content": rest}, *answer[1:]]
    text = prompt if isinstance(prompt, str) else prompt[-1]["content"]
    for start, whole in ((text, answer), (text.strip(), answer.lstrip())):
        rest = whole[len(start) :]
        if start and whole.startswith(start) and rest.strip() and not _in_a_word(start, rest):
            return rest
    return None


def _in_a_word(start: str, rest: str) -> bool:
    """Whether a prompt of one word is the beginning of a longer word, as `a` is of `all`."""
    is_inside = (start[-1] + rest[0]).isascii() and start[-1].isalnum() and rest[0].isalnum()
    return is_inside and len(start.split()) == 1


def _begins(names: Sequence[str]) -> str:
    return f"{' and '.join(f'`{name}`' for name in names)} {'begins' if len(names) == 1 else 'begin'}"
