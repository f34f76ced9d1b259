"""The same model in another precision is accepted with a warning that says how far it is; another model is refused."""

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from tests.engines.test_fingerprints import tokenizer
from tokenizers.pre_tokenizers import Whitespace
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM
from transformers.pytorch_utils import Conv1D

from frugalign.base.errors import FrugalignError
from frugalign.engines.fingerprints import BaseFingerprint, check_base, fingerprint
from frugalign.engines.precision import rounded_by, sample_weights

Change = Callable[[Tensor], Tensor]


def build(name: str = "llama", seed: int = 0) -> Any:
    """A model whose weights bfloat16 can hold, as those of most published ones."""
    torch.manual_seed(seed)
    if name == "gpt2":
        return GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=64, n_layer=2, n_head=2)).bfloat16().float().eval()
    sizes = {"vocab_size": 64, "hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(**sizes, num_hidden_layers=3)).bfloat16().float().eval()


def on_grid(weight: Tensor, levels: int, symmetric: bool) -> Tensor:
    """As in Q4_1 or Q8_0: 32 neighbours share a scale in float16, and a lowest value unless they are `symmetric`."""
    blocks = weight.float().reshape(-1, 32)
    largest = blocks.gather(1, blocks.abs().argmax(1, keepdim=True))
    lowest = torch.zeros_like(largest) if symmetric else blocks.amin(1, keepdim=True)
    span = largest if symmetric else blocks.amax(1, keepdim=True) - lowest
    step, lowest = (span / levels).half().float(), lowest.half().float()
    places = ((blocks - lowest) / step).round()
    # As llama.cpp does it, the weight of largest size lies on the grid, and the other side has one step fewer.
    places = places.clamp(-levels + 1 if symmetric else 0, levels)
    return (lowest + step * places).reshape(weight.shape)


def changed(change: Change, name: str = "llama", model: Any = None) -> Any:
    """A model with all its matrices changed, along the inputs of each output."""
    model = build(name) if model is None else model
    by_column = {id(module.weight) for module in model.modules() if isinstance(module, Conv1D)}
    with torch.no_grad():
        for value in (each for each in model.parameters() if each.dim() == 2):
            value.copy_(change(value.T.contiguous()).T if id(value) in by_column else change(value))
    return model


FORMATS: dict[str, Change] = {
    "Q4_0": lambda weight: on_grid(weight, 8, True),
    "Q4_1": lambda weight: on_grid(weight, 15, False),
    "Q5_1": lambda weight: on_grid(weight, 31, False),
    "Q6_K": lambda weight: on_grid(weight, 32, True),
    "Q8_0": lambda weight: on_grid(weight, 127, True),
}


@cache
def printed(form: str, dtype: torch.dtype | None = None) -> BaseFingerprint:
    """The fingerprint of a form of one model, loaded in float32 or another type."""
    model = build() if form == "base" else changed(FORMATS[form])
    return fingerprint(model if dtype is None else model.to(dtype), tokenizer())


@pytest.mark.parametrize(
    ("form", "dtype", "least", "most"),
    [
        ("Q4_0", None, 0.06, 0.12),
        ("Q4_1", None, 0.05, 0.10),
        ("Q4_1", torch.bfloat16, 0.05, 0.10),
        ("Q5_1", torch.float16, 0.02, 0.05),
        ("Q6_K", None, 0.01, 0.03),
        ("Q8_0", None, 0.002, 0.01),
        ("Q8_0", torch.float16, 0.002, 0.01),
    ],
)
def test_a_rounded_model_is_the_same_in_another_precision(
    form: str, dtype: torch.dtype | None, least: float, most: float, caplog: pytest.LogCaptureFixture
) -> None:
    """In both directions, and to the base in bfloat16 as in float32."""
    other = printed(form, dtype)
    for base in (printed("base"), printed("base", torch.bfloat16)):
        moved = rounded_by(base.sample, other.sample)
        assert moved is not None and least < moved < most
        for made_for, here in ((base, other), (other, base)):
            check_base(replace(made_for, name="a").to_dict(), replace(here, name="b"), "The proxy in c")
            share = rounded_by(made_for.sample, here.sample)
            assert caplog.messages[-1] == (
                "The proxy in c was trained on a, and b is the same model in another precision: "
                f"the weights are rounded otherwise, by {share:.1%} of their size. What was measured there may differ here."
            )
    assert len(caplog.messages) == 4


@pytest.mark.parametrize(("one", "other"), [("Q4_0", "Q8_0"), ("Q4_1", "Q4_0"), ("Q5_1", "Q4_1")])
def test_two_roundings_of_one_model_are_one_model(one: str, other: str) -> None:
    assert printed(one).other_precision(printed(other)) and printed(other).other_precision(printed(one))


def test_the_rows_of_a_transposed_matrix_are_its_columns() -> None:
    """GPT-2's. Along its rows no grid would be seen."""
    one, other = fingerprint(build("gpt2"), tokenizer()), fingerprint(changed(FORMATS["Q8_0"], "gpt2"), tokenizer())
    assert one.other_precision(other)


def test_float32_weights_in_float16(caplog: pytest.LogCaptureFixture) -> None:
    """Those that bfloat16 cannot hold move a little everywhere; of those it can, only the tiniest move."""
    wide = changed(lambda weight: weight + 1e-5 * torch.randn_like(weight))
    one, other = fingerprint(wide, tokenizer()), fingerprint(wide.half(), tokenizer())
    check_base(one.to_dict(), other, "The proxy in a")
    tiny = build()
    with torch.no_grad():
        tiny.model.embed_tokens.weight[5] = torch.linspace(1e-8, 1e-6, 64).bfloat16().float()
    one, other = fingerprint(tiny, tokenizer()), fingerprint(tiny.half(), tokenizer())
    assert one.weights != other.weights and one.sample == other.sample
    check_base(one.to_dict(), other, "The proxy in a")
    assert "by less than 0.1% of their size" in caplog.messages[-1]


def edited(model: Any) -> Any:
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight.mul_(1.3)
    return model


def tuned(share: float) -> Change:
    def change(weight: Tensor) -> Tensor:
        drawn = torch.randn(weight.shape, generator=torch.Generator().manual_seed(1))
        return (weight + share * weight.std() * drawn).bfloat16().float()

    return change


OTHERS: dict[str, Callable[[], Any]] = {
    "drawn again": lambda: build(seed=1),
    "drawn again, in four bits": lambda: changed(FORMATS["Q4_1"], model=build(seed=1)),
    "drawn again, in eight bits": lambda: changed(FORMATS["Q8_0"], model=build(seed=1)),
    "tuned": lambda: changed(tuned(0.2)),
    "tuned, in four bits": lambda: changed(FORMATS["Q4_1"], model=changed(tuned(0.2))),
    "tuned, in eight bits": lambda: changed(FORMATS["Q8_0"], model=changed(tuned(0.2))),
    "one matrix scaled": lambda: edited(build()),
    "one matrix scaled, in four bits": lambda: changed(FORMATS["Q4_1"], model=edited(build())),
    "half as large": lambda: changed(lambda weight: weight / 2),
}
HARDLY: dict[str, Callable[[], Any]] = {
    "tuned": lambda: changed(tuned(0.01)),
    "tuned, in eight bits": lambda: changed(FORMATS["Q8_0"], model=changed(tuned(0.02))),
    "one row": lambda: changed(lambda weight: weight.clone().index_fill_(0, torch.tensor([3]), 0.0)),
}


def refused(base: BaseFingerprint, other: BaseFingerprint) -> None:
    for made_for, here in ((base, other), (other, base)):
        with pytest.raises(FrugalignError, match=r"was trained on .*: they differ in .*weights of"):
            check_base(made_for.to_dict(), here, "The proxy in a")


@pytest.mark.parametrize("name", OTHERS)
def test_another_model_of_the_same_shape_is_refused(name: str) -> None:
    """For the base itself and for its four-bit form."""
    other = fingerprint(OTHERS[name](), tokenizer())
    for base in (printed("base"), printed("Q4_1")):
        refused(base, other)


@pytest.mark.parametrize("name", HARDLY)
def test_a_model_that_is_nearer_than_rounding_is_refused(name: str) -> None:
    """It is nearer to the base than the base's four-bit form, which hides such a difference."""
    other = fingerprint(HARDLY[name](), tokenizer())
    for base in (printed("base"), printed("base", torch.bfloat16)):
        refused(base, other)


def test_a_tokenizer_that_splits_otherwise_is_named(caplog: pytest.LogCaptureFixture) -> None:
    """As that of a GGUF file may, if its tokens, end tokens and chat template are the same."""
    base, words = printed("base"), tokenizer()
    words.backend_tokenizer.pre_tokenizer = Whitespace()
    check_base(base.to_dict(), fingerprint(changed(FORMATS["Q4_1"]), words), "The proxy in a")
    assert "of their size, and the tokenizer (pre-tokenizer) differs. What" in caplog.messages[-1]
    words.chat_template = "{{ messages[0].content }}!"
    with pytest.raises(FrugalignError, match="chat template"):
        check_base(base.to_dict(), fingerprint(changed(FORMATS["Q4_1"]), words), "The proxy in a")
    for other in (tokenizer("v"), tokenizer(n=63)):
        with pytest.raises(FrugalignError, match="tokenizer"):
            check_base(base.to_dict(), fingerprint(changed(FORMATS["Q4_1"]), other), "The proxy in a")


def test_a_config_as_a_gguf_file_holds_it() -> None:
    """Numbers are float32 there, and entries for other programs are missing. Other numbers still make another model."""
    model, base = changed(FORMATS["Q4_1"]), printed("base")
    model.config.rms_norm_eps = float(np.float32(1e-6))
    model.config.unk_token_id, model.config.rope_interleaved = 0, False
    assert base.other_precision(fingerprint(model, tokenizer()))
    model.config.rms_norm_eps = 1e-5
    assert base.other_precision(fingerprint(model, tokenizer())) is None


def test_a_sample_that_is_damaged_or_missing_recognises_nothing() -> None:
    """As do models without a row of 16 weights."""
    sample = printed("base").sample
    assert sample is not None and len(sample) < 12_000
    for broken in (None, "", "%%", sample[:-8], "AAAA"):
        assert rounded_by(broken, printed("Q4_1").sample) is None
    assert (
        sample_weights([("a", torch.zeros(4, 8)), ("c", torch.zeros(64)), ("b", torch.zeros(64, dtype=torch.uint8))])
        is None
    )
