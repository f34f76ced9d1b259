"""Constraints on an answer that a program can check: their wording, their check, and which of them go together.

A kind has values, several wordings, and slots. Two kinds that share a slot are never asked for together, since one answer might not satisfy
both. A `Constraint` is a kind with a value. `tests/experiments/test_constraints.py` has an answer for every pair and triple that can be asked for.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

FEWEST_WORDS = 5
"""An answer of fewer words meets no constraint. Otherwise `No.` would meet half of them."""

_WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")
_SENTENCE_END = re.compile(r"[.!?…]+[\"'”’)\]*]*(?=\s|$)")
_ABBREVIATION = re.compile(r"\b(?:e\.g|i\.e|vs|Mr|Mrs|Ms|Dr|Prof|St)\.|\b(?:etc|U\.S|U\.K|a\.m|p\.m)\.(?=\s+[a-z])")
_BULLET = re.compile(r"^[ \t]*[-*•][ \t]+\S", re.MULTILINE)
_NUMBERED = re.compile(r"^[ \t]*(\d+)[.)][ \t]+\S", re.MULTILINE)
_NUMBERS = ("no", "one", "two", "three", "four", "five")
_FENCE = re.compile(r"```(?:json)?\s*\n(.*)\n\s*```", re.DOTALL)


# -- what a text has ----------------------------------------------------------------------------------------------------


def words(text: str) -> list[str]:
    """The words, without punctuation. `it's` and `well-known` are one word each."""
    return _WORD.findall(text)


def count_sentences(text: str) -> int:
    """Sentences, an unfinished one at the end included. A full stop after an abbreviation ends none."""
    kept = _ABBREVIATION.sub(lambda found: found[0].replace(".", ""), text)
    return sum(bool(words(part)) for part in _SENTENCE_END.split(kept))


def has_word(text: str, word: str) -> bool:
    """Whether the text has this word or phrase as a whole, in upper or lower case."""
    return re.search(rf"(?<![^\W_]){re.escape(word)}(?![^\W_])", text, re.IGNORECASE) is not None


def _paragraphs(text: str) -> int:
    return sum(bool(words(part)) for part in re.split(r"\n\s*\n", text))


def _is_json(text: str, key: str) -> bool:
    """A JSON object whose only key holds a text, possibly in a code fence."""
    fenced = _FENCE.fullmatch(text.strip())
    try:
        found = json.loads(fenced[1] if fenced else text)
    except (ValueError, RecursionError):
        return False
    return isinstance(found, dict) and list(found) == [key] and isinstance(found[key], str) and bool(found[key].strip())


def _is_quoted(text: str) -> bool:
    text = text.strip()
    return len(text) > 2 and text[0] in '"“' and text[-1] in '"”' and not set(text[1:-1]) & set('"“”')


# -- kinds --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Kind:
    """A kind of constraint.

    Attributes:
        check: (answer, value) to whether it is met. The answer has words.
        wordings: whole sentences that ask for it, with `{}` for the value.
        slots: what it decides about an answer.
        values: what training asks for. `unseen`: what the test asks for besides.
        said: how a value is written in a wording.
    """

    name: str
    check: Callable[[str, Any], bool]
    wordings: tuple[str, ...]
    slots: frozenset[str]
    values: tuple[Any, ...] = (None,)
    unseen: tuple[Any, ...] = ()
    said: Callable[[Any], str] = str


@dataclass(frozen=True)
class Constraint:
    """A kind with its value, as a row of the data names it."""

    kind: str
    value: Any = None

    def met(self, text: str) -> bool:
        """Whether an answer meets it. An answer of fewer than five words never does."""
        return len(words(text)) >= FEWEST_WORDS and KINDS[self.kind].check(text, self.value)

    def worded(self, number: int) -> str:
        """The sentence that asks for it, in one of its wordings."""
        kind = KINDS[self.kind]
        return kind.wordings[number % len(kind.wordings)].format(kind.said(self.value))


def _kind(name: str, slots: str, check: Callable[[str, Any], bool], *wordings: str, **values: Any) -> Kind:
    return Kind(name, check, wordings, frozenset(slots.split()), **values)


_ALL = (
    _kind(
        "at most n words",
        "length",
        lambda text, n: len(words(text)) <= n,
        "Use at most {} words.",
        "Keep your answer to {} words or fewer.",
        "Please don't go over {} words.",
        "Your answer must not be longer than {} words.",
        values=(20, 40, 60),
        unseen=(30, 50),
    ),
    _kind(
        "at least n words",
        "length",
        lambda text, n: len(words(text)) >= n,
        "Write at least {} words.",
        "Your answer should be {} words or longer.",
        "Please use no fewer than {} words.",
        "Answer in {} words or more.",
        values=(30, 50),
        unseen=(40,),
    ),
    _kind(
        "n sentences",
        "length sentences",
        lambda text, n: count_sentences(text) == n,
        "Answer in exactly {}.",
        "Write {}, no more and no fewer.",
        "Your answer must be {} long.",
        "Please answer in {}.",
        values=(1, 2, 4),
        unseen=(3,),
        said=lambda n: "one sentence" if n == 1 else f"{_NUMBERS[n]} sentences",
    ),
    _kind(
        "n paragraphs",
        "format sentences",
        lambda text, n: _paragraphs(text) == n,
        "Write exactly {} paragraphs, with a blank line between them.",
        "Split your answer into {} paragraphs separated by an empty line.",
        "Use {} paragraphs, and leave a blank line after each but the last.",
        values=(2,),
        unseen=(3,),
    ),
    _kind(
        "n bullet points",
        "format sentences",
        lambda text, n: len(_BULLET.findall(text)) == n,
        "Use exactly {} bullet points, each on a line that starts with a dash.",
        "Write {} bullet points. Start each with '- ' on a new line.",
        "Give me {} bullet points, one to a line, with a dash in front.",
        values=(2, 4),
        unseen=(3,),
    ),
    _kind(
        "a numbered list of n",
        "format sentences",
        lambda text, n: [int(found) for found in _NUMBERED.findall(text)] == list(range(1, n + 1)),
        "Format your answer as a numbered list of {} items (1., 2., and so on).",
        "Give a numbered list with exactly {} entries, starting with '1.'.",
        "Number your points from 1 to {}, each on its own line.",
        values=(3, 5),
        unseen=(4,),
    ),
    _kind(
        "JSON",
        "length sentences format start end case punctuation",
        _is_json,
        'Answer with a JSON object that has the single key "{}" and nothing around it.',
        'Return only valid JSON, with one key called "{}" that holds your answer as a string.',
        'Your whole answer must be a JSON object with one text field, "{}".',
        values=("answer", "text"),
        unseen=("reply",),
    ),
    _kind(
        "includes a word",
        "word",
        has_word,
        "Use the word '{}' somewhere.",
        "Make sure the word '{}' appears in your answer.",
        "Your answer has to include the word '{}'.",
        "Work the word '{}' into your answer.",
        values=("river", "simple", "friend", "yellow"),
        unseen=("window", "music"),
    ),
    _kind(
        "avoids a word",
        "avoided",
        lambda text, word: not has_word(text, word),
        "Don't use the word '{}'.",
        "The word '{}' must not appear in your answer.",
        "Avoid the word '{}' altogether.",
        "Write your answer without the word '{}'.",
        values=("the", "and", "of"),
        unseen=("that",),
    ),
    _kind(
        "begins with",
        "start case",
        lambda text, phrase: text.strip().startswith(phrase),
        "Begin your answer with '{}'.",
        "Start with the exact words '{}'.",
        "The first words of your answer must be '{}'.",
        values=("Short answer:", "My view:"),
        unseen=("In brief:",),
    ),
    _kind(
        "ends with",
        "end case sentences",
        lambda text, phrase: text.strip().endswith(phrase),
        "End your answer with '{}'",
        "Finish with exactly this: '{}'",
        "The last words of your answer must be '{}'",
        values=("Hope this helps!", "Have a nice day."),
        unseen=("Let me know what you think.",),
    ),
    _kind(
        "ends with a question",
        "end",
        lambda text, _: text.strip().endswith("?"),
        "End with a question to me.",
        "Finish your answer by asking me a question.",
        "The last sentence of your answer must be a question.",
    ),
    _kind(
        "in quotation marks",
        "start end format",
        lambda text, _: _is_quoted(text),
        "Put your whole answer in double quotation marks.",
        "Wrap the entire answer in double quotes, and use none inside it.",
        "Your answer must start and end with a double quotation mark, with none in between.",
    ),
    _kind(
        "lower case",
        "case",
        lambda text, _: text == text.lower(),
        "Write everything in lower case.",
        "Use no capital letters at all.",
        "Answer in all lowercase letters.",
    ),
    _kind(
        "upper case",
        "case",
        lambda text, _: text == text.upper(),
        "Write everything in capital letters.",
        "ANSWER IN ALL CAPS, please.",
        "Use upper case only.",
    ),
    _kind(
        "no commas",
        "punctuation",
        lambda text, _: "," not in text,
        "Don't use any commas.",
        "Write without commas.",
        "Your answer must not contain a single comma.",
    ),
    _kind(
        "no apostrophes",
        "apostrophes",
        lambda text, _: re.search(r"[^\W_]['’][^\W_]", text) is None,
        "Don't use contractions or anything else with an apostrophe.",
        "Write without apostrophes, so no contractions.",
        "Avoid apostrophes: write 'do not' instead of 'don't'.",
    ),
)
KINDS = {each.name: each for each in _ALL}
"""Every kind, by its name."""


def compatible(names: Iterable[str]) -> bool:
    """Whether one answer can meet constraints of all these kinds."""
    taken: set[str] = set()
    for name in names:
        slots = KINDS[name].slots
        if taken & slots:
            return False
        taken |= slots
    return True


def share_met(text: str, constraints: Iterable[Constraint]) -> float:
    """The share of constraints that an answer meets. An empty answer meets none."""
    found = [each.met(text) for each in constraints]
    return sum(found) / len(found)
