"""Demonstrations of a model's own refusals: which sentences count, and what a budget of tokens makes of them."""

from collections import Counter
from typing import Any

import pytest
from experiments import own_refusals
from experiments.own_refusals import EXCUSE, WEIGHT, demonstrations, refusals

from frugalign.base.errors import FrugalignError
from frugalign.base.ledger import Ledger

ROWS = [{"prompt": f"{label} {n}", "label": label} for n in range(9) for label in ("unsafe", "safe")]


class Base:
    """As much of a loaded model as a test without one needs."""

    class tokenizer:
        @staticmethod
        def apply_chat_template(messages: list[dict[str, str]], **_: Any) -> str:
            return f"<{messages[0]['content']}>"


@pytest.fixture
def says(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The prompts that were sampled from. What follows an excuse is cut for every third prompt."""
    asked: list[list[str]] = []

    def sampled(base: Any, prompts: list[str], seed: int, rendering: Any, ledger: Ledger) -> list[str]:
        asked.append(list(prompts))
        ledger.count(generated_tokens=10 * len(prompts))
        cut = [" can't help with" if n % 3 == 0 else f" can't help with {n}. But I may" for n, _ in enumerate(prompts)]
        return cut if prompts[0].endswith(EXCUSE) else [f"about {prompt}" for prompt in prompts]

    monkeypatch.setattr(own_refusals, "_sampled", sampled)
    monkeypatch.setattr(own_refusals, "splits", lambda: {"train": ROWS})
    return asked


def test_a_refusal_is_one_whole_sentence(says: list[list[str]]) -> None:
    found = refusals(Base(), ["a", "b", "c"], 0, Ledger())
    assert found[1:] == [f"{EXCUSE} can't help with 1.", f"{EXCUSE} can't help with 2."]
    assert found[0] in found[1:]
    assert says == [[f"<{prompt}>{EXCUSE}" for prompt in "abc"]]


def test_a_model_that_never_refuses_is_an_error(says: list[list[str]]) -> None:
    with pytest.raises(FrugalignError, match="None of the model's 1 answers"):
        refusals(Base(), ["a"], 0, Ledger())


def test_every_label_has_the_number_that_was_asked_for(says: list[list[str]]) -> None:
    spent = Ledger()
    found = demonstrations(Base(), seed=1, number=6, ledger=spent)
    kinds = Counter(row["prompt"].split()[0] if row["weight"] == 1 else "contrast" for row in found)
    assert kinds == {"unsafe": 6, "safe": 6, "contrast": 2}
    assert {row["weight"] for row in found} == {1.0, WEIGHT}
    assert spent.generated_tokens == 140
    assert all(row["completion"].startswith(EXCUSE) == row["prompt"].startswith("unsafe") for row in found)
