"""Which bases are one and the same to an artefact, and how a difference is worded."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from frugalign.base.errors import FrugalignError
from frugalign.engines.fingerprints import BaseFingerprint, check_base, fingerprint


def tokenizer(prefix: str = "w", n: int = 64) -> PreTrainedTokenizerFast:
    words = {f"{prefix}{index}": index for index in range(n)}
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel(words, unk_token=f"{prefix}0")))


def build(name: str = "llama", seed: int = 0) -> Any:
    torch.manual_seed(seed)
    if name == "gpt2":
        return GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=16, n_layer=2, n_head=2)).eval()
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        tie_word_embeddings=name == "llama",
    )
    return LlamaForCausalLM(config).eval()


@pytest.mark.parametrize("name", ["llama", "llama-untied", "gpt2"])
def test_float32_and_bfloat16_are_one_base(name: str) -> None:
    """The weights differ by rounding, the fingerprint in nothing; another seed shows that it can differ."""
    wide, narrow = build(name), build(name).to(torch.bfloat16)
    assert not torch.equal(wide.lm_head.weight, narrow.lm_head.weight.float())
    one, other = fingerprint(wide, tokenizer()), fingerprint(narrow, tokenizer())
    assert replace(one, exact=None) == other and one.differences(other) == other.differences(one) == []
    assert fingerprint(wide, tokenizer()).weights != fingerprint(build(name, seed=1), tokenizer()).weights


def test_the_parts_of_the_weights_are_told_apart() -> None:
    """A changed layer is in `layers` alone, a changed embedding or norm in `weights` alone."""
    model = build()
    before = fingerprint(model, tokenizer())
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight.add_(1)
    layer = fingerprint(model, tokenizer())
    assert before.differences(layer) == ["weights of the layers"]
    for changed in (model.model.norm.weight, model.model.embed_tokens.weight):
        earlier = fingerprint(model, tokenizer())
        with torch.no_grad():
            changed.add_(1)
        assert earlier.differences(fingerprint(model, tokenizer())) == ["weights of embeddings and norms"]


MADE_FOR = BaseFingerprint(
    name="my/base",
    revision="abc",
    architecture="LlamaForCausalLM",
    width=16,
    vocabulary=64,
    tokenizer="t",
    weights="w",
    layers="l",
)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"architecture": "GPT2LMHeadModel"}, ["architecture (LlamaForCausalLM there, GPT2LMHeadModel here)"]),
        ({"width": 32}, ["hidden width (16 there, 32 here)"]),
        ({"vocabulary": 65}, ["vocabulary size (64 there, 65 here)"]),
        ({"tokenizer": "u"}, ["tokenizer"]),
        ({"weights": "v"}, ["weights of embeddings and norms"]),
        ({"layers": "k"}, ["weights of the layers"]),
        ({"width": 32, "layers": "k"}, ["hidden width (16 there, 32 here)", "weights of the layers"]),
        ({"layers": None}, []),
        ({"name": "other", "revision": None}, []),
    ],
)
def test_differences_in_words(change: dict[str, Any], words: list[str]) -> None:
    """Sizes and names are shown, hashes are not; names, revisions and what 4-bit loading cannot tell do not count."""
    assert MADE_FOR.differences(replace(MADE_FOR, **change)) == words


def test_the_sentence_of_another_base() -> None:
    other = replace(MADE_FOR, name="your/base", width=32, tokenizer="u")
    with pytest.raises(FrugalignError) as error:
        check_base(MADE_FOR.to_dict(), other, "The proxy in runs/a")
    assert str(error.value) == (
        "The proxy in runs/a was trained on my/base, not on your/base: "
        "they differ in hidden width (16 there, 32 here); tokenizer."
    )
    check_base(MADE_FOR.to_dict(), replace(MADE_FOR, name="a/copy"), "The proxy in runs/a")


def test_another_tokenizer_of_the_same_size_differs() -> None:
    """In its words, and in their order alone."""
    model = build()
    before = fingerprint(model, tokenizer())
    assert before.differences(fingerprint(model, tokenizer("v"))) == ["tokenizer"]
    words = {f"w{index}": 63 - index for index in range(64)}
    turned = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel(words, unk_token="w0")))
    assert before.differences(fingerprint(model, turned)) == ["tokenizer"]
