"""Which bases are one and the same to an artefact, and how a difference is worded."""

import json
from dataclasses import replace
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer
from tokenizers.decoders import ByteFallback
from tokenizers.models import WordLevel
from tokenizers.normalizers import Lowercase
from tokenizers.pre_tokenizers import Whitespace
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.trainer_utils import align_special_tokens

from frugalign.base.errors import FrugalignError
from frugalign.engines.fingerprints import BaseFingerprint, base_differences, check_base, fingerprint


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
    assert (
        replace(one, exact=None, sample=other.sample) == other
        and one.differences(other) == other.differences(one) == []
    )
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
    tokenizer={"vocabulary": "t", "decoder": "d", "chat template": "c", "end tokens": "e"},
    weights="w",
    layers="l",
    config={"rms_norm_eps": "1e-06", "rope_parameters.rope_theta": "10000", "transformers_version": "5.1"},
)
OTHER_TOKENIZER = {"vocabulary": "u", "decoder": "d", "chat template": "c", "end tokens": "e"}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"architecture": "GPT2LMHeadModel"}, ["architecture (LlamaForCausalLM there, GPT2LMHeadModel here)"]),
        ({"width": 32}, ["hidden width (16 there, 32 here)"]),
        ({"vocabulary": 65}, ["vocabulary size (64 there, 65 here)"]),
        ({"tokenizer": OTHER_TOKENIZER}, ["tokenizer (vocabulary)"]),
        ({"tokenizer": OTHER_TOKENIZER | {"decoder": "f"}}, ["tokenizer (vocabulary, decoder)"]),
        (
            {"tokenizer": MADE_FOR.tokenizer | {"chat template": "o", "end tokens": "o"}},
            ["chat template", "end tokens"],
        ),
        ({"tokenizer": None}, []),
        ({"config": MADE_FOR.config | {"rms_norm_eps": "0.1"}}, ["config rms_norm_eps (1e-06 there, 0.1 here)"]),
        ({"config": MADE_FOR.config | {"head_dim": "8"}}, ["config head_dim (unset there, 8 here)"]),
        ({"config": MADE_FOR.config | {"head_dim": "8", "transformers_version": "6.0"}}, []),
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
    other = replace(MADE_FOR, name="your/base", width=32, tokenizer=OTHER_TOKENIZER)
    with pytest.raises(FrugalignError) as error:
        check_base(MADE_FOR.to_dict(), other, "The proxy in runs/a")
    assert str(error.value) == (
        "The proxy in runs/a was trained on my/base, not on your/base: "
        "they differ in hidden width (16 there, 32 here); tokenizer (vocabulary)."
    )
    check_base(MADE_FOR.to_dict(), replace(MADE_FOR, name="a/copy"), "The proxy in runs/a")


def test_another_tokenizer_of_the_same_size_differs() -> None:
    """In its words, and in their order alone."""
    model = build()
    before = fingerprint(model, tokenizer())
    assert before.differences(fingerprint(model, tokenizer("v"))) == ["tokenizer (vocabulary and merges)"]
    words = {f"w{index}": 63 - index for index in range(64)}
    turned = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel(words, unk_token="w0")))
    assert before.differences(fingerprint(model, turned)) == ["tokenizer (vocabulary and merges)"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}, "rope_parameters.rope_theta (10000 there, 500000 here)"),
        ({"rms_norm_eps": 1e-3}, "rms_norm_eps (1e-06 there, 0.001 here)"),
        ({"hidden_act": "gelu"}, 'hidden_act ("silu" there, "gelu" here)'),
        ({"num_attention_heads": 4, "head_dim": 8}, "num_attention_heads (2 there, 4 here)"),
        ({"attention_bias": True}, "attention_bias (false there, true here)"),
        ({"max_position_embeddings": 99}, "max_position_embeddings (2048 there, 99 here)"),
        ({"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}}, "rope_parameters.factor (unset there, 2 here)"),
    ],
)  # fmt: skip
def test_a_setting_of_the_base_that_changes_results_is_named(change: dict[str, Any], words: str) -> None:
    """The weights are the same; the config says that they are used otherwise."""
    model, before = build(), fingerprint(build(), tokenizer())
    for name, value in change.items():
        setattr(model.config, name, value)
    found = before.differences(fingerprint(model, tokenizer()))
    assert f"config {words}" in found and not any("weights" in each for each in found)


@pytest.mark.parametrize(
    "change",
    [
        {"_name_or_path": "elsewhere", "dtype": "bfloat16", "use_cache": False, "transformers_version": "1.0"},
        {"pad_token_id": 3, "attention_dropout": 0.5, "initializer_range": 0.1},
        {"id2label": {0: "a"}, "architectures": None, "_attn_implementation": "eager"},
        {"rope_parameters": {"rope_theta": 10000, "rope_type": "default"}},
    ],
)
def test_a_setting_without_effect_makes_no_other_base(change: dict[str, Any]) -> None:
    model, before = build(), fingerprint(build(), tokenizer())
    for name, value in change.items():
        setattr(model.config, name, value)
    assert before.differences(fingerprint(model, tokenizer())) == []


def _template(words: Any) -> None:
    words.chat_template = "{{ messages[0].content }}!"


def _normalizer(words: Any) -> None:
    words.backend_tokenizer.normalizer = Lowercase()


def _pre_tokenizer(words: Any) -> None:
    words.backend_tokenizer.pre_tokenizer = Whitespace()


def _decoder(words: Any) -> None:
    words.backend_tokenizer.decoder = ByteFallback()


def _merges(words: Any) -> None:
    words.backend_tokenizer.model.unk_token = "w3"


def _added(words: Any) -> None:
    words.add_tokens(["w5"])  # a word that is there already, now matched before anything else


def _split(words: Any) -> None:
    words.split_special_tokens = True  # special tokens in a text are no longer recognised


def _end(words: Any) -> None:
    words.eos_token = "w9"


def _padding(words: Any) -> None:
    words.pad_token = "w0"
    words.padding_side, words.truncation_side = "left", "left"
    words(["w1", "w1 w2"], padding=True, truncation=True, max_length=4)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_template, ["chat template"]),
        (_normalizer, ["tokenizer (normalizer)"]),
        (_pre_tokenizer, ["tokenizer (pre-tokenizer)"]),
        (_decoder, ["tokenizer (decoder)"]),
        (_merges, ["tokenizer (vocabulary and merges)"]),
        (_added, ["tokenizer (added tokens)"]),
        (_split, ["tokenizer (added tokens)"]),
        (_end, ["tokenizer (special tokens)", "end tokens"]),
        (_padding, []),
    ],
)
def test_the_parts_of_a_tokenizer_are_told_apart(change: Any, words: list[str]) -> None:
    """The vocabulary is the same. Padding and truncation are no part of a base."""
    model, other = build(), tokenizer()
    change(other)
    assert fingerprint(model, tokenizer()).differences(fingerprint(model, other)) == words


def test_end_tokens_do_not_depend_on_what_trainer_aligns() -> None:
    """Trainer adds the tokenizer's end token to the generation config, and its ids to the config."""
    model, words = build(), tokenizer()
    words.eos_token = "w9"
    model.generation_config.eos_token_id = [7]
    before = fingerprint(model, words)
    align_special_tokens(model, words)
    assert model.config.eos_token_id == 9 and before.differences(fingerprint(model, words)) == []
    model.generation_config.eos_token_id = [8, 9]
    assert before.differences(fingerprint(model, words)) == ["end tokens"]


class _Scales:
    """Stands for the state of a 4-bit weight of bitsandbytes."""

    def __init__(self, scale: float) -> None:
        self.scale = scale

    def as_dict(self, packed: bool) -> dict[str, Any]:
        return {"absmax": torch.tensor([self.scale]), "quant_type": "nf4"}


def quantised(packed: int = 5, scale: float = 1.0) -> Any:
    model = build()
    weight = nn.Parameter(torch.full((256, 1), packed, dtype=torch.uint8), requires_grad=False)
    weight.quant_state = _Scales(scale)
    model.model.layers[0].mlp.up_proj.weight = weight
    return model


def test_quantised_weights_are_compared_as_stored_or_it_is_said(caplog: pytest.LogCaptureFixture) -> None:
    """Packed values and scales count. A base that is quantised on one side only is accepted with a warning."""
    one, full = fingerprint(quantised(), tokenizer()), fingerprint(build(), tokenizer())
    assert one.layers is None and one.exact is None and one.differences(fingerprint(quantised(), tokenizer())) == []
    for other in (quantised(packed=6), quantised(scale=2.0)):
        assert one.differences(fingerprint(other, tokenizer())) == ["quantised weights of the layers"]
    assert not caplog.messages
    for made_for, here in ((full, one), (one, full)):
        check_base(made_for.to_dict(), here, "The proxy in runs/a")
        assert "The proxy in runs/a: one of the two models is quantised" in caplog.messages[-1]
    assert len(caplog.messages) == 2


def test_weights_that_are_buffers_count() -> None:
    """As those of GPTQ and AWQ."""
    models = [build() for _ in range(2)]
    for model, value in zip(models, (1, 2), strict=True):
        model.model.layers[0].register_buffer("qweight", torch.full((4, 4), value, dtype=torch.int32))
        model.model.layers[0].register_buffer("mask", torch.full((4, 4), value), persistent=False)
    one, other = (fingerprint(model, tokenizer()) for model in models)
    assert one.differences(other) == ["weights of the layers"]


def test_the_scale_of_an_adapter_in_the_base_counts() -> None:
    """It is no weight, yet it changes what the adapter's weights do."""
    one, other = (
        fingerprint(get_peft_model(build(), LoraConfig(r=2, lora_alpha=alpha, target_modules=["q_proj"])), tokenizer())
        for alpha in (2, 4)
    )
    assert "config adapter.lora_alpha (2 there, 4 here)" in one.differences(other)


def test_two_identities_are_compared_in_words() -> None:
    """As a resumed run compares them: another dtype is the same base."""
    stored = json.loads(json.dumps(fingerprint(build(), tokenizer()).identity))
    assert base_differences(stored, fingerprint(build().to(torch.bfloat16), tokenizer()).identity) == []
    assert base_differences(stored, fingerprint(build(seed=1), tokenizer()).identity) == [
        "weights of embeddings and norms",
        "weights of the layers",
    ]
    with pytest.raises(
        FrugalignError, match="The checkpoint was saved by another version of frugalign, without its arch"
    ):
        base_differences({}, stored)
    with pytest.raises(
        FrugalignError, match="The checkpoint does not say which base it belongs to: its width is damaged"
    ):
        base_differences(stored | {"width": "16"}, stored)
