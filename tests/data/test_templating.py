"""Prompts to token ids, with a tokenizer of words built here."""

from __future__ import annotations

import logging

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from frugalign.base.errors import FrugalignError
from frugalign.data import Rendering, encode_prompts, render_prompt

WORDS = ["<pad>", "<s>", "</s>", "<user>", "<assistant>", "<system>", "a", "b", "c", "d", "e"]
A, B, C, D, E = range(6, 11)
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if m['role'] == 'tool' %}{{ raise_exception('no tools here') }}{% endif %}"
    " <{{ m['role'] }}> {{ m['content'] }}{% endfor %}{% if add_generation_prompt %} <assistant>{% endif %}"
)


def tokenizer(template: str | None = None, *, bos: bool = True) -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<pad>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if bos:
        backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    built = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<s>" if bos else None,
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<pad>",
    )
    built.chat_template = template
    return built


def user(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def test_a_string_is_a_user_turn_exactly_where_there_is_a_template() -> None:
    assert render_prompt("a b", tokenizer()) == "a b"
    assert render_prompt("a b", tokenizer(TEMPLATE)) == "<s> <user> a b <assistant>"
    assert render_prompt("a b", tokenizer(TEMPLATE), Rendering("raw")) == "a b"
    assert render_prompt("a b", tokenizer(TEMPLATE), Rendering("chat")) == render_prompt(
        user("a b"), tokenizer(TEMPLATE), Rendering("raw")
    )


def test_a_last_assistant_message_is_continued() -> None:
    prompt = [*user("a"), {"role": "assistant", "content": "b"}]
    assert render_prompt(prompt, tokenizer(TEMPLATE)) == "<s> <user> a <assistant> b"


def test_messages_without_a_template_and_a_template_that_refuses() -> None:
    with pytest.raises(FrugalignError, match="no chat template"):
        render_prompt(user("a"), tokenizer())
    with pytest.raises(FrugalignError, match="no chat template"):
        render_prompt("a", tokenizer(), Rendering("chat"))
    with pytest.raises(FrugalignError, match=r"^Prompt 2: The chat template refuses the messages: no tools here\.$"):
        encode_prompts([user("a"), [{"role": "tool", "content": "x"}]], tokenizer(TEMPLATE), max_new_tokens=1)
    with pytest.raises(FrugalignError, match="must be auto, raw or chat"):
        render_prompt("a", tokenizer(), Rendering("nonsense"))


def test_special_tokens_come_once() -> None:
    """Raw: the tokenizer's own BOS. Chat: only the one that the template writes."""
    assert encode_prompts(["a b", "c"], tokenizer(), max_new_tokens=1).ids == [[1, A, B], [1, C]]
    assert encode_prompts(["a", user("b")], tokenizer(TEMPLATE), max_new_tokens=1).ids == [[1, 3, A, 4], [1, 3, B, 4]]
    mixed = encode_prompts(["a", user("b")], tokenizer(TEMPLATE), max_new_tokens=1, rendering=Rendering("raw"))
    assert mixed.ids == [[1, A], [1, 3, B, 4]]


def test_an_empty_prompt_starts_from_bos_or_is_an_error() -> None:
    assert encode_prompts([""], tokenizer(), max_new_tokens=1).ids == [[1]]
    with pytest.raises(FrugalignError, match="Prompt 2 has no token"):
        encode_prompts(["a", ""], tokenizer(bos=False), max_new_tokens=1)


def test_long_prompts_are_cut_on_the_left_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        encoded = encode_prompts(["a b c d", "e"], tokenizer(), max_prompt_length=3, max_new_tokens=1)
    assert encoded.ids == [[B, C, D], [1, E]]
    assert encoded.n_cut == 1
    assert "Cut 1 of 2 prompts" in caplog.text


def test_a_prompt_over_the_context_is_an_error_that_names_row_and_lengths() -> None:
    """`a b c d` and BOS are 5 tokens: with 3 new ones they fit a context of 8, with 4 they do not."""
    assert encode_prompts(["a", "a b c d"], tokenizer(), max_context=8, max_new_tokens=3).n_cut == 0
    with pytest.raises(FrugalignError, match=r"Prompt 2 has 5 tokens.*max_new_tokens = 4.*context of 8"):
        encode_prompts(["a", "a b c d"], tokenizer(), max_context=8, max_new_tokens=4)
    cut = encode_prompts(["a b c d"], tokenizer(), max_context=8, max_new_tokens=4, max_prompt_length=4)
    assert cut.ids == [[A, B, C, D]] and cut.n_cut == 1
