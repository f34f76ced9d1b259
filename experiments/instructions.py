"""The instructions task: meet constraints that a program can check. Studies name its pieces as `experiments.instructions:NAME`.

    FRUGALIGN_TRIALS=folder python -m experiments.instructions [--smoke]

writes the prompts and prints what they ask for. A prompt is one of Alpaca's instructions with one to three constraints, in the words of a
person (`experiments.constraints`). No instruction is in two splits. Every combination in the test has a pair of kinds that training never
asks for together, and the test asks for values that training never has. The reward is the share of constraints met, from the row's column.
"""

from __future__ import annotations

import gzip
import itertools
import json
import random
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from experiments.constraints import KINDS, Constraint, compatible, share_met
from experiments.summary import script_options
from experiments.trials import trials

from frugalign.base.files import write_atomic
from frugalign.policies.principles import Principles

WORK = Path("runs/tasks/instructions")
SIZES = {"test": 200, "validation": 100, "train": 900}
"""Prompts, at most one to an instruction. The test takes its instructions first."""
LONGEST = 140
"""Characters of an instruction."""
_SHARES = {"test": 0.2, "validation": 0.1}
"""Of the pairs of kinds. The others are training's."""
_HOW_MANY = (1, 2, 2, 3, 3)
"""Constraints of a prompt, drawn evenly. The test has two or three, since one alone is no combination."""
_OWN_FORM = re.compile(
    r"\b(lists?|tables?|poems?|haiku|code|sentences?|words?|paragraphs?|json|bullets?|functions?|sql|html|css|translate|uppercase|lowercase|"
    r"programs?|scripts?|rhym\w*|limerick|essay|letters?|e-?mails?|spell|numbers?|digits?|rewrite|rephrase|edit|sort|classify|categorize|"
    r"dialogue|conversation|titles?|headlines?|slogans?|hashtags?|tweets?|quiz|questions?|songs?|lyrics|regex|python|java|javascript|query|"
    r"algorithm|calculate|convert|equation|formula|characters?|anagram|synonyms?|antonyms?|riddle|jokes?|puns?|metaphors?|similes?|analogy|"
    r"acronym|outline|steps?|two|three|four|five|six|seven|ten|\d+|generate|compose|comma|quotes?|one|following|below|this|given|these)\b",
    re.IGNORECASE,
)
"""Words of an instruction that may ask for a form itself, or refer to something that is not there."""

SYSTEM_PROMPT = (
    "You answer requests that come with rules about length, wording and format. First read every rule. Then write an answer that keeps all of "
    "them exactly, even if it becomes short or plain. Count words, sentences and list items before you answer. Write the answer only, and say "
    "nothing about the rules."
)
FEW_SHOT = Principles(
    demonstrations=(
        (
            "Why do leaves change colour in autumn? Answer in exactly two sentences. Don't use any commas.",
            "Leaves stop making green pigment when the days get short and cold. The yellow and red pigments that were hidden all summer then show.",
        ),
        (
            "Suggest a way to save energy at home. Write everything in lower case. Use at most 20 words.",
            "turn the heating down by one degree at night and switch off lights in empty rooms.",
        ),
        (
            "Describe a good breakfast. Give me 3 bullet points, one to a line, with a dash in front. Use the word 'simple' somewhere.",
            "- A bowl of oats with milk\n- A simple boiled egg on toast\n- A piece of fresh fruit",
        ),
    )
)


# -- reward and judges --------------------------------------------------------------------------------------------------


def _asked(row: str) -> list[Constraint]:
    return [Constraint(each["kind"], each["value"]) for each in json.loads(row)]


def reward(completions: list[str], constraints: list[str], **_: Any) -> list[float]:
    """The share of a prompt's constraints that an answer meets. `constraints`: a row's column, in JSON."""
    return [share_met(text, _asked(row)) for text, row in zip(completions, constraints, strict=True)]


def all_met(completions: list[str], constraints: list[str], **_: Any) -> list[float]:
    """Whether an answer meets all of them."""
    return [float(value == 1) for value in reward(completions=completions, constraints=constraints)]


def share_with_new_values(completions: list[str], constraints: list[str], **_: Any) -> list[float | None]:
    """The share among constraints whose value training never has. None for a prompt without one."""
    found: list[float | None] = []
    for text, row in zip(completions, constraints, strict=True):
        new = [each for each in _asked(row) if each.value in KINDS[each.kind].unseen]
        found.append(share_met(text, new) if new else None)
    return found


# -- data ---------------------------------------------------------------------------------------------------------------


def combinations(split: str) -> list[tuple[str, ...]]:
    """The pairs and triples of kinds that a split asks for, each one possible.

    A pair belongs to one split. A triple of training has three of training's pairs. A triple of another split has one or more of its own, and
    otherwise training's.
    """
    found, owners = [], pair_owners()
    for size in (2, 3):
        for names in filter(compatible, itertools.combinations(KINDS, size)):
            here = {owners[pair] for pair in itertools.combinations(names, 2)}
            if here == {split} or (split != "train" and here == {split, "train"}):
                found.append(names)
    return found


@cache
def pair_owners() -> dict[tuple[str, str], str]:
    """The split of every possible pair of kinds. Every kind has about the same share of its pairs in each split."""
    pairs = [pair for pair in itertools.combinations(KINDS, 2) if compatible(pair)]
    n_pairs = Counter(name for pair in pairs for name in pair)
    found = dict.fromkeys(pairs, "train")
    random.Random(0).shuffle(pairs)
    for split, share in _SHARES.items():
        left = {name: max(1, round(share * number)) for name, number in n_pairs.items()}
        for pair in pairs:
            if found[pair] == "train" and all(left[name] for name in pair):
                found[pair] = split
                for name in pair:
                    left[name] -= 1
    return found


def instructions() -> list[str]:
    """Alpaca's instructions that need no input and set no form themselves, shuffled. Equal ones occur once."""
    with gzip.open(trials() / "data" / "alpaca-5k.jsonl.gz", "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    texts = [row["instruction"].strip() for row in rows if not row.get("input")]
    fitting = [
        text for text in texts if len(text) < LONGEST and not _OWN_FORM.search(text) and not set(text) & set('"“\n')
    ]
    found = list({text.lower().rstrip(".!? "): text for text in fitting}.values())
    random.Random(0).shuffle(found)
    return found


def rows(split: str, texts: Sequence[str], seed: int = 0) -> Iterator[dict[str, str]]:
    """A row for each instruction: the prompt, its constraints in JSON, and the kinds' names."""
    noise = random.Random(f"{split} {seed}")
    possible = [*((name,) for name in KINDS), *combinations(split)]
    for text in texts:
        # A size, then a kind, so that kinds that go with few others are asked for too.
        size, kind = noise.choice(_HOW_MANY if split == "train" else _HOW_MANY[1:]), noise.choice(list(KINDS))
        sized = [names for names in possible if len(names) == size]
        names = list(noise.choice([names for names in sized if kind in names] or sized))
        noise.shuffle(names)
        asked = [Constraint(name, noise.choice(_values(name, split))) for name in names]
        said = " ".join(each.worded(noise.randrange(1000)) for each in asked)
        ended = text if text[-1] in ".!?" else f"{text}."
        column = json.dumps([{"kind": each.kind, "value": each.value} for each in asked], ensure_ascii=False)
        yield {"prompt": f"{ended} {said}", "constraints": column, "kinds": " + ".join(sorted(names))}


def _values(name: str, split: str) -> tuple[Any, ...]:
    kind = KINDS[name]
    return kind.values + kind.unseen if split == "test" else kind.values


def prompts() -> str:
    """Folder of the prompts in three splits."""
    folder = WORK / "prompts"
    if not (folder / "train.jsonl").is_file():
        texts, start = instructions(), 0
        for split, size in SIZES.items():  # training comes last: a folder without it is incomplete
            part = rows(split, texts[start : start + size])
            write_atomic(folder / f"{split}.jsonl", "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in part))
            start += size
    return str(folder)


def main() -> None:
    """Write the prompts, and print three of each split with how often its kinds are asked for."""
    shown = 1 if script_options(__doc__).smoke else 3
    folder = Path(prompts())
    for split in SIZES:
        found = [json.loads(line) for line in (folder / f"{split}.jsonl").read_text("utf-8").splitlines()]
        counts = Counter(name for row in found for name in row["kinds"].split(" + "))
        print(f"{split}: {len(found)} prompts, {len({row['kinds'] for row in found})} combinations")
        print("  " + ", ".join(f"{name} {number}" for name, number in counts.most_common()))
        for row in found[:shown]:
            print(f"  {row['prompt']}")


if __name__ == "__main__":
    main()
