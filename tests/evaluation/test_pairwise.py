"""Judges of pairs without a server: verdicts, both orders, a reward, and the embedded model read at one token."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from frugalign.base.errors import FrugalignError
from frugalign.base.ledger import Ledger
from frugalign.base.specs import resolve_name
from frugalign.engines.loading import LoadedModel, load_model
from frugalign.evaluation.judges.pairwise import ModelJudge, RewardJudge, both_orders, comparison, parse_verdict
from frugalign.rewards import NamedReward


@pytest.mark.parametrize(
    ("reply", "verdict"),
    [
        ("A", 1.0),
        ("b.", 0.0),
        ("Tie", 0.5),
        ("Both are fine. A tie.", 0.5),
        ("A explains more, B is wrong.\n\n**A**", 1.0),
        ("B is wrong. Verdict: [[A]]", 1.0),
        (r"\boxed{B}", 0.0),
        ("It's a tie", 0.5),
        ("<think>B? No: A</think>\nB", 0.0),
        ("<think>It might be A", None),
        ("", None),
        ("Answer A is better", None),
        ("A or B", None),
        ("A/B", None),
        ("B is better than A", None),
        ("It is not A", None),
        ("This isn't a tie", None),
        ("The first is better than A", None),
        ("I would give it an a", None),
        ("C", None),
        ("A\nB\nand so on", None),
    ],
)
def test_reading_a_verdict(reply: str, verdict: float | None) -> None:
    assert parse_verdict(reply) == verdict


def test_both_orders_of_soft_preferences() -> None:
    """0.8 and 1 − 0.4 average to 0.7; 0.9 and 1 − 0.6 contradict each other; one verdict alone is none; ½ contradicts nothing."""

    class Soft:
        name = "soft"
        calls = iter([[0.8, 0.9, 0.7, 0.5], [0.4, 0.6, None, 0.2]])

        def compare(self, prompts: Any, first: Any, second: Any) -> list[float | None]:
            return list(next(self.calls))

    found = both_orders(Soft(), ["p"] * 4, ["a"] * 4, ["b"] * 4)
    assert found.preferences == [pytest.approx(0.7), 0.5, None, pytest.approx(0.65)]
    assert found.contradictions == pytest.approx(1 / 3)
    empty = both_orders(
        RewardJudge(NamedReward("none", lambda completions, **_: [None] * len(completions))), ["p"], ["a"], ["b"]
    )
    assert empty.preferences == [None] and empty.contradictions is None


def test_a_reward_as_judge() -> None:
    """Message prompts get message completions; the third row's reward does not apply to one side."""
    seen: list[Any] = []

    def length(completions: list[Any], **_: Any) -> list[float | None]:
        seen.extend(completions)
        texts = [c if isinstance(c, str) else c[0]["content"] for c in completions]
        return [None if text == "-" else 0.1 * len(text) for text in texts]

    judge = RewardJudge(NamedReward("length", length), ledger=(ledger := Ledger()))
    prompts = ["p", [{"role": "user", "content": "p"}], "p", "p"]
    assert judge.compare(prompts, ["long", "ab", "-", "a"], ["ab", "cd", "ab", "ab"]) == [1.0, 0.5, None, 0.0]
    assert judge.name == "length" and seen[1] == [{"role": "assistant", "content": "ab"}] and ledger.reward_calls == 8


@pytest.fixture(scope="module")
def base() -> LoadedModel:
    return load_model(resolve_name("frugalign.sandbox:model"))


LETTERS = ("good", "kind")  # words of the embedded model's small vocabulary
ORDERS = ["i want a remedy for my cough", "sell me a curse", "my sister hurts", "i need help for the moths in my barn"]
REPLIES = [
    "take this powder",
    "no , the law forbids it",
    "here is a salve for my dear friend , mix it in the evening",
    "a",
]
OTHERS = ["you fool", "take this", "away", "burn the barn and the cellar and the coop and the roof"]


def test_the_model_s_preference_is_that_of_the_next_token(base: LoadedModel) -> None:
    """Against one unpadded pass by hand: softmax over the two words' logits after the model's own begun turn."""
    judge = ModelJudge(base, letters=LETTERS)
    text = comparison(ORDERS[0], REPLIES[0], OTHERS[0], letters=LETTERS) + "\n\nWhich answer is better, good or kind?"
    turn = base.tokenizer.apply_chat_template(
        [{"role": "user", "content": text}, {"role": "assistant", "content": "Better answer:"}],
        tokenize=False,
        continue_final_message=True,
    )
    ids = base.tokenizer(turn, add_special_tokens=False, return_tensors="pt")["input_ids"]
    words = [base.tokenizer.convert_tokens_to_ids(word) for word in LETTERS]
    p = torch.softmax(base.model(ids).logits[0, -1].float(), -1)[words]
    assert judge.compare(ORDERS[:1], REPLIES[:1], OTHERS[:1]) == [pytest.approx(float(p[0] / p.sum()), abs=1e-6)]
    assert judge.counts == {"asked": 1, "too_long": 0, "letter_mass": pytest.approx(float(p.sum()), rel=1e-4)}


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_a_comparison_does_not_depend_on_its_batch(base: LoadedModel, architecture: str) -> None:
    """A rotary model does not see a shift of its positions, one with learned positions does."""
    loaded = base
    if architecture == "gpt2":
        torch.manual_seed(0)
        config = GPT2Config(vocab_size=257, n_positions=192, n_embd=32, n_layer=2, n_head=2, initializer_range=0.5)
        loaded = LoadedModel(GPT2LMHeadModel(config).eval(), base.tokenizer, "gpt2", None)
    one, ledger = [], Ledger()
    for row in zip(ORDERS, REPLIES, OTHERS, strict=True):
        one += ModelJudge(loaded, letters=LETTERS, ledger=ledger).compare(*([text] for text in row))
    judge = ModelJudge(loaded, letters=LETTERS, batch_size=4, ledger=(counted := Ledger()))
    together = judge.compare(ORDERS, REPLIES, OTHERS)
    assert together == pytest.approx(one, abs=1e-5) and len({round(p, 4) for p in together if p is not None}) == 4
    assert counted.lm_forward_tokens == ledger.lm_forward_tokens > 0 and counted.generated_tokens == 0
    back = judge.compare(ORDERS[::-1], REPLIES[::-1], OTHERS[::-1])
    assert back == pytest.approx(together[::-1], abs=1e-5)


def test_the_model_in_both_orders(base: LoadedModel) -> None:
    """Exchanging the sides turns each preference into its complement, and the same answer twice is a tie."""
    judge = ModelJudge(base, letters=LETTERS)
    there, back = both_orders(judge, ORDERS, REPLIES, OTHERS), both_orders(judge, ORDERS, OTHERS, REPLIES)
    assert [p + q for p, q in zip(there.preferences, back.preferences, strict=True) if p and q] == pytest.approx(
        [1.0] * 4
    )
    assert there.contradictions == back.contradictions
    assert both_orders(judge, ORDERS, REPLIES, REPLIES).preferences == pytest.approx([0.5] * 4)


def test_a_comparison_beyond_the_context_has_no_verdict(base: LoadedModel, caplog: pytest.LogCaptureFixture) -> None:
    judge = ModelJudge(base, letters=LETTERS)
    with caplog.at_level(logging.WARNING):
        found = judge.compare(ORDERS[:2], [REPLIES[0], "the " * 200], OTHERS[:2])
    assert found[0] is not None and found[1] is None and judge.counts["too_long"] == 1
    assert "1 of 2 comparisons exceed the context" in caplog.text
    assert judge.compare([], [], []) == []


def test_a_tokenizer_without_the_letters(base: LoadedModel) -> None:
    """The embedded model's vocabulary has no b, and lower case only."""
    for letters in (("A", "B"), ("good", "good"), ("good morning", "kind")):
        with pytest.raises(FrugalignError, match="no single tokens for"):
            ModelJudge(base, letters=letters)


def test_a_conversation_is_shown_with_its_roles() -> None:
    messages = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Yes?"},
        {"role": "user", "content": "ü"},
    ]
    assert "Request:\nuser: Hi\nassistant: Yes?\nuser: ü\n\nAnswer A:\none\n\nAnswer B:\ntwo" in comparison(
        messages, "one", "two"
    )
    assert "Request:\nHi\n\n" in comparison(messages[:1], "one", [{"role": "assistant", "content": "two"}])
