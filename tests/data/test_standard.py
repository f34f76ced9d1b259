"""Rows in their one form: the prompt once, roles kept, a system prompt at its head, and what cannot be used."""

from __future__ import annotations

from typing import Any

import pytest

from frugalign.data.standard import Misfit, detect_kind, standard_row


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


SYSTEM = {"role": "system", "content": "Be kind."}


def pair(prompt: Any, chosen: Any, rejected: Any, **more: Any) -> dict[str, Any]:
    row = {"prompt": prompt, "chosen": chosen, "rejected": rejected} | more
    return standard_row(
        {name: value for name, value in row.items() if value is not None}, "preference", has_prompt=prompt is not None
    )


def expected(prompt: Any, chosen: Any, rejected: Any) -> dict[str, Any]:
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected}


def test_a_prompt_that_the_answers_repeat_is_read_once() -> None:
    """As in UltraFeedback: the prompt as text, and the same words as the first turn of both answers."""
    q, yes, no = user("Is tea hot?"), assistant("Yes."), assistant("No.")
    right = expected([q], [yes], [no])
    assert pair("Is tea hot?", [q, yes], [q, no]) == right
    assert pair([q], [q, yes], [q, no]) == right
    assert pair("Is tea hot?", [yes], [no]) == right
    assert pair(None, [q, yes], [q, no]) == right
    assert pair([q], "Yes.", "No.") == right
    assert pair("Is tea hot?", [SYSTEM, q, yes], [SYSTEM, q, no]) == expected([SYSTEM, q], [yes], [no])
    # Answers that are whole conversations in one text.
    texts = [f"\n\nHuman: Is tea hot?\n\nAssistant: {answer}" for answer in ("Yes.", "No.")]
    assert pair("Is tea hot?", *texts) == right
    # The prompt is the first turn only; both answers go on alike before they part.
    more = [assistant("What tea?"), user("Mint.")]
    assert pair("Is tea hot?", [q, *more, yes], [q, *more, no]) == expected([q, *more], [yes], [no])


def test_several_turns_of_an_answer_stay_messages() -> None:
    turns = [assistant("a"), user("b"), assistant("c")]
    assert pair("Hi", turns, [assistant("d")]) == expected([user("Hi")], turns, [assistant("d")])
    row = {"prompt": "Hi", "completion": [user("Hi"), *turns]}
    assert standard_row(row, "prompt-completion") == {"prompt": [user("Hi")], "completion": turns}


def test_a_system_prompt_heads_the_conversation() -> None:
    assert standard_row({"prompt": "Hi", "system": "Be kind."}, "prompt-only") == {"prompt": [SYSTEM, user("Hi")]}
    assert standard_row({"prompt": "Hi", "system": " "}, "prompt-only") == {"prompt": "Hi"}
    assert standard_row({"prompt": [SYSTEM, user("Hi")], "system": "Be kind."}, "prompt-only")["prompt"][0] == SYSTEM
    found = pair("Hi", "Yes.", "No.", system="Be kind.")
    assert found == expected([SYSTEM, user("Hi")], [assistant("Yes.")], [assistant("No.")])
    row = {"prompt": "Hi", "completion": "Yes.", "label": True, "system": "Be kind."}
    assert standard_row(row, "unpaired-preference")["completion"] == [assistant("Yes.")]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"chosen": "It is blue.", "rejected": "It is red."}, "chosen and rejected share no prompt"),
        ({"chosen": [assistant("a")], "rejected": [assistant("b")]}, "chosen and rejected share no prompt"),
        ({"chosen": "Human: Hi\nAssistant:", "rejected": "Human: Hi\nAssistant: Yes"}, "`chosen` is empty after the"),
        (
            {"chosen": "Human: Hi\nAssistant: Yes", "rejected": "Human: Hi\nAssistant: "},
            "`rejected` is empty after the",
        ),
        (
            {"prompt": "Hi", "chosen": "Yes", "rejected": [assistant("No")]},
            "`chosen` is text, but `rejected` is a list",
        ),
        (
            {"prompt": "Hi", "chosen": [user("Ho"), assistant("a")], "rejected": [user("Ho"), assistant("b")]},
            "'user' that",
        ),
        (
            {"prompt": "Hi", "chosen": [user("Hi"), assistant("a")], "rejected": [user("Ho"), assistant("b")]},
            "'user' that",
        ),
        # A prompt within the answers is one like any other.
        ({"chosen": [user(" "), assistant("a")], "rejected": [user(" "), assistant("b")]}, "`prompt` is empty"),
        (
            {"chosen": [user("Hi"), user(""), assistant("a")], "rejected": [user("Hi"), user(""), assistant("b")]},
            "`prompt` is empty",
        ),
        ({"prompt": "Hi", "chosen": "a", "rejected": "b", "system": 3}, "`system` is a number, not text"),
        (
            {"prompt": [SYSTEM, user("a")], "chosen": "a", "rejected": "b", "system": "Be rude."},
            "`system` differs from",
        ),
        ({"prompt": "a\0b", "chosen": "a", "rejected": "b"}, "`prompt` holds a NUL"),
        ({"prompt": "[{'role': 'user', 'content': 'Hi'}]", "chosen": "a", "rejected": "b"}, "was written as text"),
        ({"prompt": '[{"content": "Hi", "role": "user"}]', "chosen": "a", "rejected": "b"}, "was written as text"),
        ({"prompt": [{"from": "human", "value": "Hi"}], "chosen": "a", "rejected": "b"}, "`frugalign convert` renames"),
    ],
)
def test_a_pair_that_cannot_be_used(row: dict[str, Any], reason: str) -> None:
    with pytest.raises(Misfit) as caught:
        standard_row(row, "preference", has_prompt="prompt" in row)
    assert reason in str(caught.value)


def test_text_that_only_looks_like_a_list_is_text() -> None:
    for text in ("[INST] Hi [/INST]", "[1, 2] is a list", "array of {role}", "[{'a': 1}] prints what?"):
        assert standard_row({"prompt": text}, "prompt-only") == {"prompt": text}


def test_the_type_follows_from_the_columns() -> None:
    def kind(columns: list[str], **row: Any) -> str:
        return detect_kind([*columns, *row], [row])

    assert kind(["prompt", "chosen"]) == "preference"
    assert kind(["prompt", "completion"], label=True) == "unpaired-preference"
    assert kind(["prompt", "completion"], label="True") == "unpaired-preference"  # CSV
    assert (
        kind(["prompt", "completion"], label=1) == kind(["prompt", "completion"], label="safe") == "prompt-completion"
    )
    assert kind(["prompt"], completions=["a", "b"]) == "groups"
    assert kind(["prompt"], completions=[{"model": "x"}]) == kind(["text"]) == "prompt-only"


def test_groups_are_checked() -> None:
    good = {"prompt": "p", "completions": ["a", ""], "completion_ids": [[1], [2]], "rewards": [1, None]}
    assert standard_row(good, "groups") == good
    for change, reason in [
        ({"completions": ["a"]}, "`completions` must be a list of at least two texts"),
        ({"completion_ids": [1, 2]}, "`completion_ids` must be a list with one entry per completion"),
        ({"rewards": [0.5]}, "2 completions, but 1 `rewards`"),
    ]:
        with pytest.raises(Misfit) as caught:
            standard_row(good | change, "groups")
        assert str(caught.value) == reason
