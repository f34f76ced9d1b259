"""Prompt and answer as tokens that end where a judge reads."""

import pytest

import frugalign.sandbox as sandbox
from frugalign.base.errors import FrugalignError
from frugalign.data.encode import answer_text, encode_completions
from frugalign.data.templating import Rendering
from frugalign.engines.loading import load_model


@pytest.fixture(scope="module")
def tokenizer() -> object:
    return load_model(sandbox.model).tokenizer


def test_the_end_token_is_the_endpoint_of_an_answer_given_as_text(tokenizer) -> None:  # type: ignore[no-untyped-def]
    """The prompt as a model is asked it; what the template writes after the end token is left out."""
    end = tokenizer.eos_token_id
    found = encode_completions(["A balm."], ["Here."], tokenizer, end_ids=[end])
    rendered = tokenizer.apply_chat_template(
        [{"role": "user", "content": "A balm."}], tokenize=False, add_generation_prompt=True
    )
    assert found.prompt_ids[0] == tokenizer(rendered, add_special_tokens=False)["input_ids"]
    assert found.completion_ids[0] == [*tokenizer("Here.", add_special_tokens=False)["input_ids"], end]
    assert found.ids[0][-1] == end
    messages = encode_completions(
        [[{"role": "user", "content": "A balm."}]],
        [[{"role": "assistant", "content": "Here."}]],
        tokenizer,
        end_ids=[end],
    )
    assert messages.ids == found.ids


def test_what_was_generated_is_taken_as_it_is(tokenizer) -> None:  # type: ignore[no-untyped-def]
    """A completion that was cut has no end token, and ends in its last one."""
    found = encode_completions(["A balm."], ["ignored"], tokenizer, end_ids=[1], completion_ids=[[7, 8, 9]])
    assert found.completion_ids == [[7, 8, 9]]


def test_what_is_too_long_loses_its_beginning(tokenizer) -> None:  # type: ignore[no-untyped-def]
    """Two tokens over: two of the prompt. An answer longer than all keeps its end and loses its prompt."""
    whole = encode_completions(["A balm for my horse."], ["Here."], tokenizer, end_ids=[1])
    length = len(whole.ids[0])
    cut = encode_completions(["A balm for my horse."], ["Here."], tokenizer, end_ids=[1]).cut(length - 2)
    assert cut.ids[0] == whole.ids[0][2:] and cut.n_cut == 1 and whole.n_cut == 0
    long = encode_completions(["A balm."], ["x"], tokenizer, end_ids=[1], completion_ids=[list(range(2, 12))]).cut(6)
    assert (long.prompt_ids, long.completion_ids) == ([[]], [[6, 7, 8, 9, 10, 11]])


def test_an_answer_without_a_token_is_named(tokenizer) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(FrugalignError, match="Answer 2 has no token"):
        encode_completions(["a", "b"], ["x", ""], tokenizer, rendering=Rendering("raw"))
    assert answer_text([{"role": "assistant", "content": "a"}, {"role": "assistant", "content": "b"}]) == "a\nb"
