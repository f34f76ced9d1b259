"""Prompts and answers of base models, which have no template: where the text is divided, and what closes it."""

from __future__ import annotations

from typing import Any

import pytest
from datasets import Dataset
from tests.data.chat_models import (
    ASKED,
    BY_NAME,
    ids_of,
    model_ending_with,
)
from tokenizers import processors
from transformers import ByT5Tokenizer, PreTrainedTokenizer, PreTrainedTokenizerFast

from frugalign.base.errors import FrugalignError
from frugalign.data.encode import encode_completions
from frugalign.data.templating import encode_prompts
from frugalign.engines.encode import encode_for_model, tokenize_pairs
from frugalign.engines.transformers import end_token_ids


def base_tokenizer(name: str = "Llama 3") -> PreTrainedTokenizerFast:
    tokenizer = BY_NAME[name].tokenizer()
    tokenizer.chat_template = None
    return tokenizer


RAW = [
    ("How is the weather today?", " It is cold."),  # the space belongs to the answer
    ("How is the weather today? ", "It is cold."),  # and here to the prompt
    ("Hello there.\n", "\nIt is cold."),  # "\n\n" is one token
    ("It is co", "ld outside."),
    ("", "It is cold."),
    ("<|begin_of_text|>It is", " cold."),
]


@pytest.mark.parametrize(("prompt", "answer"), RAW)
def test_text_is_tokenised_with_its_answer(prompt: str, answer: str) -> None:
    """The ids are those of the whole text: one BOS, no lost space, one end token."""
    tokenizer = base_tokenizer()
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    found = encode_completions([prompt], [answer], tokenizer, end_ids=[eos])
    text = (prompt + answer).removeprefix("<|begin_of_text|>")
    assert found.ids[0] == [bos, *ids_of(tokenizer, text), eos]
    assert found.completion_ids[0][-1] == eos
    sampled = encode_prompts([prompt], tokenizer, max_new_tokens=1).ids[0]
    assert found.prompt_ids[0] == sampled[: len(found.prompt_ids[0])]


def test_a_token_across_the_border_belongs_to_the_answer() -> None:
    """ " co" and "ld" are " cold", which the prompt alone does not have. Both answers of a pair get the same prompt."""
    tokenizer = base_tokenizer()
    asked, cold = ids_of(tokenizer, "It is"), ids_of(tokenizer, " cold")
    assert len(cold) == 1 and ids_of(tokenizer, "It is co")[: len(asked)] == asked
    found = encode_completions(["It is co"], ["ld."], tokenizer)
    assert found.prompt_ids[0] == [tokenizer.bos_token_id, *asked]
    assert found.completion_ids[0] == [*cold, *ids_of(tokenizer, ".")]
    pairs = Dataset.from_dict({"prompt": ["It is co"], "chosen": ["ld."], "rejected": [" No."]})
    columns = tokenize_pairs(pairs, model_ending_with([3]), tokenizer)
    assert columns["prompt_ids"] == found.prompt_ids
    assert columns["chosen_ids"] == [[*found.completion_ids[0], 3]]
    assert columns["rejected_ids"] == [[*ids_of(tokenizer, " co No."), 3]]


def test_a_rendered_prompt_keeps_the_ids_that_sampling_reads() -> None:
    """Even where the tokenizer would join its last line break with that of the answer."""
    tokenizer = BY_NAME["ChatML"].tokenizer()
    assert len(ids_of(tokenizer, "\n\n")) == 1
    found = encode_completions(["Hi!"], ["\nHello."], tokenizer)
    assert found.prompt_ids == encode_prompts(["Hi!"], tokenizer, max_new_tokens=1).ids
    assert found.completion_ids[0] == ids_of(tokenizer, "\n") + ids_of(tokenizer, "Hello.<|im_end|>")


def test_a_pair_too_long_keeps_the_ends_of_its_answers() -> None:
    """Both sides get the prompt that is left beside the longer answer."""
    tokenizer = base_tokenizer()
    pairs = Dataset.from_dict({"prompt": ["abcdefgh"], "chosen": ["ijklmnop"], "rejected": ["ij"]})
    whole = tokenize_pairs(pairs, model_ending_with([3]), tokenizer)
    size = len(whole["prompt_ids"][0]) + len(whole["chosen_ids"][0])
    cut = tokenize_pairs(pairs, model_ending_with([3]), tokenizer, max_length=size - 2)
    assert cut["prompt_ids"] == [whole["prompt_ids"][0][2:]]
    assert (cut["chosen_ids"], cut["rejected_ids"]) == (whole["chosen_ids"], whole["rejected_ids"])


@pytest.mark.parametrize("ends", [[3, "eos"], ["eos", 3], ["eos"], "eos", None])
def test_text_is_closed_by_the_tokenizers_end_token(ends: Any) -> None:
    """Wherever it stands among several."""
    tokenizer = base_tokenizer()
    eos = tokenizer.eos_token_id
    listed = [eos if each == "eos" else each for each in ends] if isinstance(ends, list) else eos if ends else None
    model = model_ending_with(listed)
    assert end_token_ids(model, tokenizer)[0] == eos
    assert encode_for_model(model, tokenizer, ["Hi!"], ["Hello."]).completion_ids[0][-1] == eos
    closed = encode_for_model(model, tokenizer, ["Hi!"], ["Hello.<|eot_id|>"]).completion_ids[0]
    assert closed.count(eos) == 1
    # Where the model never samples it, its own end token closes the answer.
    assert encode_for_model(model_ending_with([3]), tokenizer, ["Hi!"], ["Hello."]).completion_ids[0][-1] == 3


def test_no_end_token_stands_between_prompt_and_answer() -> None:
    """A tokenizer that puts one after every text (`add_eos_token`), fast or slow."""
    fast = base_tokenizer()
    bos, eos = fast.bos_token_id, fast.eos_token_id
    single = f"{fast.bos_token} $A {fast.eos_token}"
    fast.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=single, special_tokens=[(fast.bos_token, bos), (fast.eos_token, eos)]
    )
    assert fast("Hi!")["input_ids"][-1] == eos
    assert encode_completions(["Hi!"], [" Hello."], fast, end_ids=[eos]).ids[0].count(eos) == 1
    assert encode_prompts(["Hi!", ""], fast, max_new_tokens=1).ids == [[bos, *ids_of(fast, "Hi!")], [bos]]
    slow = ByT5Tokenizer()
    found = encode_completions(["Hé"], [" é"], slow, end_ids=[1])
    assert found.prompt_ids == [[byte + 3 for byte in "Hé".encode()]]
    assert found.completion_ids == [[*(byte + 3 for byte in " é".encode()), 1]]


class LongestMatch(PreTrainedTokenizer):
    """A slow tokenizer without offsets: the longest piece of its vocabulary, character by character."""

    PIECES = ("<s>", "</s>", "a", "b", "c", " ", "ab", "abc", " c")

    def __init__(self, **more: Any) -> None:
        super().__init__(bos_token="<s>", eos_token="</s>", unk_token="</s>", **more)

    @property
    def vocab_size(self) -> int:
        return len(self.PIECES)

    def get_vocab(self) -> dict[str, int]:
        return {piece: number for number, piece in enumerate(self.PIECES)}

    def _tokenize(self, text: str, **more: Any) -> list[str]:
        found = []
        while text:
            piece = max((piece for piece in self.PIECES if text.startswith(piece)), key=len)
            found.append(piece)
            text = text[len(piece) :]
        return found

    def _convert_token_to_id(self, token: str) -> int:
        return self.PIECES.index(token)

    def _convert_id_to_token(self, index: int) -> str:
        return self.PIECES[index]


def test_a_slow_tokenizer_divides_where_its_tokens_differ() -> None:
    tokenizer = LongestMatch()
    found = encode_completions(["a ab", "a "], ["c", "c"], tokenizer, end_ids=[1])
    assert found.prompt_ids == [[2, 5], [2]]
    assert found.completion_ids == [[7, 1], [8, 1]]


def test_several_turns_need_a_template() -> None:
    turns = [{"role": "assistant", "content": "a"}, ASKED, {"role": "assistant", "content": "b"}]
    tokenizer = base_tokenizer()
    with pytest.raises(FrugalignError, match=r"^Answer 1: It has several messages, which need a chat template"):
        encode_completions(["Hi!"], [turns], tokenizer)
    assert encode_completions(["Hi!"], [turns[:1]], tokenizer).ids == encode_completions(["Hi!"], ["a"], tokenizer).ids
