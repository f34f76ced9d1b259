"""Constraints that a program checks: worked values for each, and an answer to whatever can be asked for together."""

import itertools
import json
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from experiments.constraints import KINDS, Constraint, compatible, count_sentences, has_word, share_met, words
from experiments.instructions import FEW_SHOT, combinations, pair_owners, reward, rows

FIVE = "Take a walk every day"

CASES: dict[str, list[tuple[Any, str, bool]]] = {
    "at most n words": [
        (5, FIVE, True),
        (5, f"{FIVE}.", True),
        (5, f"{FIVE} twice.", False),
        (5, "It's a well-known old trick", True),
        (6, "- Take a walk\n- every day", True),
    ],
    "at least n words": [(5, FIVE, True), (6, FIVE, False), (6, "Take — a walk , every day", False)],
    "n sentences": [
        (1, "Take a walk every day", True),
        (1, "Take a walk every day.", True),
        (2, "Take a walk. Sleep well at night!", True),
        (2, 'He said "take a walk." Then he left!', True),
        (1, "Dr. Smith takes a walk, e.g. at noon, for 2.5 miles.", True),
        (2, "Take a walk, sleep, etc. Then eat well?!", True),
        (2, "Take a walk. Sleep well. Eat well.", False),
        (1, "", False),
        (1, "... ! ?", False),
    ],
    "n paragraphs": [
        (2, "Take a walk.\n\nSleep well at night.", True),
        (2, "\n\nTake a walk.\n \n\nSleep well at night.\n\n", True),
        (2, "Take a walk.\nSleep well at night.", False),
        (2, "Take a walk.\n\n---\n\nSleep well at night.", True),
    ],
    "n bullet points": [
        (2, "- Take a walk\n- Sleep well", True),
        (2, "Try this:\n\n* Take a walk\n  * Sleep well", True),
        (2, "- Take a walk\n- Sleep well\n- Eat", False),
        (2, "-Take a walk\n-Sleep well", False),
        (2, "**Take** a walk\n**Sleep** well tonight", False),
        (2, "- Take a walk and sleep\n- ", False),
    ],
    "a numbered list of n": [
        (2, "1. Take a walk\n2. Sleep well", True),
        (2, "Two things:\n1) Take a walk\n2) Sleep well", True),
        (2, "1. Take a walk\n3. Sleep well", False),
        (2, "1. Take a walk\n1. Sleep well", False),
        (3, "1. Take a walk\n2. Sleep well", False),
        (1, "1.5 miles are enough for you", False),
    ],
    "JSON": [
        ("answer", '{"answer": "Take a walk every day."}', True),
        ("answer", '```json\n{"answer": "Take a walk every day."}\n```', True),
        ("answer", 'Sure: {"answer": "Take a walk every day."}', False),
        ("answer", '{"reply": "Take a walk every day."}', False),
        ("answer", '{"answer": "Take a walk every day.", "n": 1}', False),
        ("answer", '{"answer": ["take", "a", "walk", "every", "day"]}', False),
        ("answer", '["take", "a", "walk", "every", "day"]', False),
        ("answer", "{'answer': 'Take a walk every day.'}", False),
        ("answer", "[" * 100_000 + " take a walk every day", False),
        ("answer", '{"answer": "Take a walk every day.', False),
    ],
    "includes a word": [
        ("river", "Walk by the River every day.", True),
        ("river", "Walk by the riverside every day.", False),
        ("river", "WALK BY THE RIVER, DAILY", True),
        ("river", "Walk by the river's bank daily", True),
    ],
    "avoids a word": [
        ("the", "Walk to work every other day", True),
        ("the", "The walk to work is good", False),
        ("of", "Sort this out, often or not", True),
        ("and", "Walk AND sleep, every single day", False),
    ],
    "begins with": [
        ("My view:", "My view: take a walk", True),
        ("My view:", "\n My view: take a walk", True),
        ("My view:", "my view: take a walk", False),
        ("My view:", "Well. My view: take a walk", False),
    ],
    "ends with": [
        ("Have a nice day.", "Take a walk. Have a nice day.\n", True),
        ("Have a nice day.", "Take a walk. Have a nice day", False),
        ("Have a nice day.", "Have a nice day. Take a walk.", False),
    ],
    "ends with a question": [
        (None, "Take a walk. Is that enough?", True),
        (None, "Is that enough? Take a walk.", False),
        (None, "Is that enough for you? Yes", False),
    ],
    "in quotation marks": [
        (None, '"Take a walk every day."', True),
        (None, "“Take a walk every day.”", True),
        (None, 'Take "a walk" every single day', False),
        (None, '"Take a walk," he said. "Every day."', False),
        (None, '"Take a walk every day.', False),
        (None, "'Take a walk every day.'", False),
    ],
    "lower case": [(None, "take a walk every day.", True), (None, "Take a walk every day.", False)],
    "upper case": [(None, "TAKE A WALK EVERY DAY.", True), (None, "TAKE A WALK EVERY DAy.", False)],
    "no commas": [(None, "Take a walk every day; sleep.", True), (None, "Take a walk, every day.", False)],
    "no apostrophes": [
        (None, "Do not skip your daily walk.", True),
        (None, "Don't skip your daily walk, please.", False),
        (None, "Skip a day’s walk now and then", False),
        (None, "Take 'a walk' every single day", True),
    ],
}


@pytest.mark.parametrize(
    ("kind", "value", "text", "met"),
    [(kind, value, text, met) for kind, cases in CASES.items() for value, text, met in cases],
)
def test_worked_values(kind: str, value: Any, text: str, met: bool) -> None:
    assert Constraint(kind, value).met(text) is met


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_has_good_and_bad_examples_and_wordings(kind: str) -> None:
    assert {met for _, _, met in CASES[kind]} == {True, False}
    found = KINDS[kind]
    assert len(set(found.wordings)) >= 3 and not set(found.values) & set(found.unseen)
    for value in (*found.values, *found.unseen):
        for number in range(len(found.wordings)):
            said = Constraint(kind, value).worded(number)
            assert "{" not in said and "None" not in said and said[0].isupper(), said
            assert value is None or str(value) in said or kind == "n sentences", said


@pytest.mark.parametrize(
    "text", ["", " \n", ".", "?", "No.", "ok", "{}", "...", '""', "- ", "1.", "\x00", "👍 👍 👍", "a b c d"]
)
@pytest.mark.parametrize("kind", KINDS)
def test_an_answer_of_a_few_words_meets_nothing(kind: str, text: str) -> None:
    for value in (*KINDS[kind].values, *KINDS[kind].unseen):
        assert Constraint(kind, value).met(text) is False


def test_shares() -> None:
    asked = [
        Constraint("no commas"),
        Constraint("lower case"),
        Constraint("at most n words", 20),
        Constraint("JSON", "text"),
    ]
    assert share_met("take a walk every day", asked) == 0.75
    assert share_met("Take a walk, every day", asked) == 0.25
    assert share_met("", asked) == 0.0
    column = json.dumps([{"kind": "no commas", "value": None}, {"kind": "n sentences", "value": 1}])
    assert reward(completions=["Take a walk every day.", "No"], constraints=[column, column]) == [1.0, 0.0]


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("One two three four. Five!", 2),
        ("Mr. Brown met Mrs. Green.", 1),
        ("Version 2.0 is out. Get it at example.com today", 2),
        ("Yes!!! Really?! Fine...", 3),
        ("(He left.) She stayed.", 2),
    ],
)
def test_sentences_are_counted_as_a_reader_would(text: str, number: int) -> None:
    assert count_sentences(text) == number


def test_words_are_whole() -> None:
    assert words("It's 5 o'clock — well-known, isn't it?") == ["It's", "5", "o'clock", "well-known", "isn't", "it"]
    assert has_word("an ‘of’ here", "of") and not has_word("often", "of") and not has_word("the_of_it", "then")


# -- together -----------------------------------------------------------------------------------------------------------


def answer_to(asked: Sequence[Constraint]) -> str:
    """An answer that meets all of these, built from neutral words that none of them forbids."""
    value = {each.kind: each.value for each in asked}
    number = next(
        (value[kind] for kind in ("n bullet points", "a numbered list of n", "n paragraphs") if kind in value), 1
    )
    number = value.get("n sentences", number)
    size = -(-value.get("at least n words", 5) // number)
    parts = [" ".join(["fine"] * max(2, size)) for _ in range(number)]
    parts[0] += f" {value['includes a word']}" if "includes a word" in value else ""
    if "n bullet points" in value:
        text = "\n".join(f"- {part}" for part in parts)
    elif "a numbered list of n" in value:
        text = "\n".join(f"{place + 1}. {part}" for place, part in enumerate(parts))
    else:
        text = ("\n\n" if "n paragraphs" in value else " ").join(f"{part}." for part in parts)
    text = text.rstrip(".") + "?" if "ends with a question" in value else text
    text = f"{value['begins with']}\n{text}" if "begins with" in value else text
    text = f"{text} {value['ends with']}" if "ends with" in value else text
    text = f'"{text}"' if "in quotation marks" in value else text
    text = json.dumps({value["JSON"]: text}) if "JSON" in value else text
    return text.lower() if "lower case" in value else text.upper() if "upper case" in value else text


def askable(names: Sequence[str]) -> Iterator[list[Constraint]]:
    """These kinds with every combination of their values."""
    for values in itertools.product(*((*KINDS[name].values, *KINDS[name].unseen) for name in names)):
        yield [Constraint(name, value) for name, value in zip(names, values, strict=True)]


@pytest.mark.parametrize("size", [1, 2, 3])
def test_whatever_is_asked_for_together_can_be_met(size: int) -> None:
    """Every compatible pair and triple with every value."""
    number = 0
    for names in filter(compatible, itertools.combinations(KINDS, size)):
        for asked in askable(names):
            text = answer_to(asked)
            assert share_met(text, asked) == 1.0, (asked, text)
            number += 1
    assert number > {1: 30, 2: 500, 3: 4_000}[size]


@pytest.mark.parametrize(
    "names",
    [
        ("lower case", "upper case"),
        ("at most n words", "at least n words"),
        ("JSON", "in quotation marks"),
        ("ends with", "ends with a question"),
        ("n sentences", "n bullet points"),
        ("begins with", "upper case"),
        ("JSON", "n paragraphs"),
    ],
)
def test_what_contradicts_is_never_asked_for(names: tuple[str, str]) -> None:
    assert not compatible(names)
    assert not [
        each for split in ("train", "validation", "test") for each in combinations(split) if {*names} <= {*each}
    ]


def test_a_tests_combination_has_a_pair_that_training_never_has() -> None:
    trained = {pair for names in combinations("train") for pair in itertools.combinations(names, 2)}
    for split, least in (("validation", 20), ("test", 40)):
        found = combinations(split)
        assert len(found) >= least
        for names in found:
            pairs = set(itertools.combinations(names, 2))
            assert pairs - trained and all(pair_owners()[pair] in (split, "train") for pair in pairs)
    for split in ("train", "validation", "test"):  # every kind is asked for with others in every split
        assert {name for names in combinations(split) for name in names} == set(KINDS)


def test_rows_ask_for_what_their_split_may() -> None:
    texts = [f"Tell me about animal {number}" for number in range(400)]
    found = {split: list(rows(split, texts)) for split in ("train", "test")}
    values = {split: set() for split in found}
    for split, each in found.items():
        assert each == list(rows(split, texts)) and len({row["prompt"] for row in each}) == len(texts)
        allowed = {tuple(sorted(names)) for names in combinations(split)}
        for row, text in zip(each, texts, strict=True):
            asked = json.loads(row["constraints"])
            names = tuple(sorted(one["kind"] for one in asked))
            assert row["prompt"].startswith(f"{text}. ") and row["kinds"] == " + ".join(names)
            assert len(names) == 1 if len(names) < 2 else names in allowed
            values[split] |= {(one["kind"], one["value"]) for one in asked}
        sizes = {len(json.loads(row["constraints"])) for row in each}
        assert sizes == ({1, 2, 3} if split == "train" else {2, 3})
    unseen = {(kind.name, value) for kind in KINDS.values() for value in kind.unseen}
    assert not values["train"] & unseen and values["test"] & unseen == unseen
    assert [row["prompt"] for row in rows("train", texts, seed=1)] != [row["prompt"] for row in found["train"]]


def test_the_examples_of_few_shot_keep_their_rules() -> None:
    asked = [
        [Constraint("n sentences", 2), Constraint("no commas")],
        [Constraint("lower case"), Constraint("at most n words", 20)],
        [Constraint("n bullet points", 3), Constraint("includes a word", "simple")],
    ]
    for (_, answer), constraints in zip(FEW_SHOT.demonstrations, asked, strict=True):
        assert share_met(answer, constraints) == 1.0, answer
