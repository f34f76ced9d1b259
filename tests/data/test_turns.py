"""Where the prompt ends in conversations that hold both: at turn marks and line ends, never inside a sentence."""

from __future__ import annotations

import pytest

from frugalign.data.turns import repeated, split_messages, split_texts, text_turns


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


@pytest.mark.parametrize(
    ("prompt", "chosen", "rejected"),
    [
        ("Human: what is 2+2\nAssistant:\n", "Four", "Seven"),
        ("用户：你好吗\n助手：", "我很好", "不好"),
        ("\n\nHuman: Hi\n\nAssistant: ", "Yes", "Yes, sure"),  # one answer begins the other
        ("Human: Hi. Robot: ", "Hello you.", "Help."),  # on one line
        ("ユーザー：元気？\nアシスタント：", "はい", "いいえ"),
        ("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n", "Yes a", "Yes b"),
        ("<|start_header_id|>user<|end_header_id|>\n\nHi<|start_header_id|>assistant<|end_header_id|>\n\n", "A", "B"),
        ("<start_of_turn>user\nHi<end_of_turn>\n<start_of_turn>model\n", "Yes", "Yet"),
        ("[INST] Hi [/INST] ", "Yes", "Yet"),
        ("### Instruction:\nfoo\n\n### Response:\n", "bar", "baz"),
        ("**User:** Hi\n**Assistant:** ", "Yes", "No"),
        ("POST: a long one\n\nTL;DR: ", "bar", "baz"),
        ("Human: \n\nAssistant: ", "x", "y"),  # an empty turn
        ("Write a poem.\n", "Roses are red", "Roses are blue"),  # no mark: the line end
        # The conversations part in the user's second turn, so the answers hold several turns.
        ("\n\nHuman: a\n\nAssistant: ", "b\n\nHuman: c1\n\nAssistant: d", "b\n\nHuman: c2\n\nAssistant: e"),
        # The answers share their first line and their first words.
        ("Human: List two.\nAssistant: ", "One:\n- a tree", "One:\n- a stone"),
    ],
)
def test_a_text_is_cut_where_the_answer_begins(prompt: str, chosen: str, rejected: str) -> None:
    assert split_texts(prompt + chosen, prompt + rejected) == (prompt, chosen, rejected)


@pytest.mark.parametrize(
    ("chosen", "rejected"),
    [
        ("It is blue.", "It is red."),
        ("The AI said: yes", "The AI said: no"),
        ("你好吗我很好", "你好吗不好"),
        ("Human: What is a cat?", "Human: What is a dog?"),  # the user's turn alone
        ("", "x"),
        ("\n\nyes", "\n\nno"),
    ],
)
def test_a_sentence_is_never_cut(chosen: str, rejected: str) -> None:
    assert split_texts(chosen, rejected) is None


@pytest.mark.parametrize(
    ("chosen", "rejected", "shared"),
    [
        ([user("Hi"), assistant("Yes")], [user("Hi"), assistant("No")], 1),
        # One begins the other, both are equal, and they part in the user's turn.
        ([user("Hi"), assistant("Yes")], [user("Hi"), assistant("Yes"), user("more"), assistant("No")], 1),
        ([user("Hi"), assistant("Yes")], [user("Hi"), assistant("Yes")], 1),
        ([user("Hi"), assistant("a"), user("x"), assistant("b")], [user("Hi"), assistant("a"), user("y")], 1),
        (
            [user("a"), assistant("b"), user("c"), assistant("d")],
            [user("a"), assistant("b"), user("c"), assistant("e")],
            3,
        ),
        ([assistant("Yes")], [assistant("No")], 0),
        ([user("Hi")], [user("Hi"), assistant("Yes")], 0),
        ([user("a"), assistant("b")], [user("c"), assistant("d")], 0),
    ],
)
def test_messages_are_cut_before_the_assistants(chosen: list, rejected: list, shared: int) -> None:
    assert split_messages(chosen, rejected) == shared


def test_what_an_answer_repeats() -> None:
    system = {"role": "system", "content": "Be kind."}
    assert repeated("Hi", [user("Hi"), assistant("Yes")]) == 1
    assert repeated("Hi", [system, user("Hi "), assistant("Yes")]) == 2
    assert repeated("Hi", [user("Ho"), assistant("Yes")]) == repeated("Hi", [assistant("Hi")]) == 0
    assert repeated([user("Hi")], [user("Hi"), assistant("Yes")]) == 1
    assert repeated([user("Hi")], [user("Hi")]) == 0


def test_a_marked_text_is_a_conversation() -> None:
    text = "\n\nHuman: Hi: you\n\nAssistant: Hello.\n\nHuman: Boil\nan egg\n\nAssistant: Seven minutes."
    assert text_turns(text) == [user("Hi: you"), assistant("Hello."), user("Boil\nan egg"), assistant("Seven minutes.")]
    assert text_turns("No marks") is None and text_turns("Before.\nHuman: Hi") is None


QUOTED = "Fill this in:\nQuestion: a\nAnswer: b\nModel: T\nUser: u\nAI: c\nHuman: d\nPrompt: e\nInput: f\nA: g\nBot: h"


@pytest.mark.parametrize(
    ("text", "turns"),
    [
        (f"\n\nHuman: Hi\n\nAssistant: {QUOTED}", [user("Hi"), assistant(QUOTED)]),
        (f"\n\nHuman: {QUOTED}\n\nAssistant: Yes", [user(QUOTED), assistant("Yes")]),
        (f"Human: Hi\n\nAssistant: {QUOTED}", [user("Hi"), assistant(QUOTED)]),  # the empty lines before it are cut off
        ("Question: Hi\nAnswer: A list\nQ: x\nAssistant: y", [user("Hi"), assistant("A list\nQ: x\nAssistant: y")]),
        ("User: Hi\nAI: Yes\nModel: T\nUser: Ho", [user("Hi"), assistant("Yes\nModel: T"), user("Ho")]),
        (
            "### Instruction:\nAdd\n\n### Input:\n1\n\n### Response:\n2\n### Question: 3",
            [user("Add"), user("1"), assistant("2\n### Question: 3")],
        ),
        (
            "System: Be kind.\n\nHuman: Hi\n\nAssistant: Q: x",
            [{"role": "system", "content": "Be kind."}, user("Hi"), assistant("Q: x")],
        ),
        ("用户：你好\n助手：答：很好\n回答：x", [user("你好"), assistant("答：很好\n回答：x")]),
        (
            "[INST] Hi [/INST] Human: x\nAssistant: y",
            None,
        ),
        (
            "\nHuman: Hi\nAssistant: <|im_start|>user\nYes<|im_end|>",
            [user("Hi"), assistant("<|im_start|>user\nYes<|im_end|>")],
        ),
    ],
)
def test_only_the_names_of_one_format_begin_turns(text: str, turns: list[dict[str, str]] | None) -> None:
    assert text_turns(text) == turns


@pytest.mark.parametrize("quoted", ["Question: x\nAnswer: ", "Model: ", "Human: q\nAssistant: "])
def test_a_prompt_ends_before_a_shared_line_that_looks_like_a_turn(quoted: str) -> None:
    prompt = "\n\nHuman: Hi\n\nAssistant: "
    assert split_texts(f"{prompt}{quoted}yes", f"{prompt}{quoted}no") == (prompt, f"{quoted}yes", f"{quoted}no")
