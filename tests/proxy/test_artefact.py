"""A proxy on disk: bit-equal after a round trip, and refused in one sentence wherever it does not belong or was damaged."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.proxy.tiny_llama import llama, tokenizer
from transformers import GPT2Config, GPT2LMHeadModel

from frugalign.base.errors import FrugalignError
from frugalign.engines.fingerprints import fingerprint
from frugalign.proxy.network import ProxyModel, load_proxy, new_proxy


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A saved proxy for `llama()`."""
    model = llama()
    proxy = new_proxy(model, {"hidden": 4, "dim": 4})
    with torch.no_grad():
        for parameter in proxy.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(7)))
    proxy.config.base = fingerprint(model, tokenizer(), name="my/base").to_dict()
    proxy.save_pretrained(tmp_path / "proxy")
    return tmp_path / "proxy"


def rewrite(folder: Path, change: Any) -> None:
    """The weights changed in place, under a header that is sound."""
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def test_a_round_trip_is_bit_equal_and_leaves_safetensors_only(folder: Path) -> None:
    proxy = load_proxy(folder, llama(), tokenizer())
    again = folder.parent / "again"
    proxy.save_pretrained(again)
    assert (again / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()
    for name, value in load_proxy(again, llama(), tokenizer()).state_dict().items():
        assert torch.equal(value, proxy.state_dict()[name])
    assert {path.name for path in again.iterdir()} == {"config.json", "model.safetensors"}
    assert callable(proxy.push_to_hub)


def test_the_same_base_in_bfloat16_is_the_same_base(folder: Path) -> None:
    assert isinstance(load_proxy(folder, llama().to(torch.bfloat16), tokenizer()), ProxyModel)


def test_every_other_base_is_refused_with_what_differs(folder: Path) -> None:
    torch.manual_seed(0)
    gpt2 = GPT2LMHeadModel(GPT2Config(vocab_size=60, n_embd=16, n_layer=1, n_head=2)).eval()
    for model, words in (
        (llama(seed=1), "weights"),
        (llama(vocabulary=61), "vocabulary size (60 there, 61 here)"),
        (gpt2, "architecture (LlamaForCausalLM there, GPT2LMHeadModel here)"),
    ):
        with pytest.raises(FrugalignError) as error:
            load_proxy(folder, model, tokenizer())
        assert words in str(error.value) and "was trained on my/base" in str(error.value)
        assert "\n" not in str(error.value)
    with pytest.raises(FrugalignError, match="they differ in tokenizer"):
        load_proxy(folder, llama(), tokenizer("v"))


def test_another_objective_is_refused(folder: Path) -> None:
    assert load_proxy(folder, objective="marginal").config.objective == "marginal"
    with pytest.raises(FrugalignError, match="trained under objective 'marginal', not 'sequential'"):
        load_proxy(folder, objective="sequential")


def test_changed_bytes_under_a_sound_header_are_noticed(folder: Path) -> None:
    def nudge(tensors: dict[str, torch.Tensor]) -> None:
        tensors["bias"] += 1e-6

    rewrite(folder, nudge)
    with pytest.raises(FrugalignError, match="has been changed since it was saved"):
        load_proxy(folder)


def test_a_missing_and_a_foreign_tensor(folder: Path) -> None:
    rewrite(folder, lambda tensors: tensors.update(stranger=torch.zeros(1)))
    with pytest.raises(FrugalignError, match=r"do not fit its config\.json.*stranger"):
        load_proxy(folder)
    rewrite(folder, lambda tensors: (tensors.pop("stranger"), tensors.pop("bias")))
    with pytest.raises(FrugalignError, match=r"do not fit its config\.json.*bias"):
        load_proxy(folder)


def test_a_tensor_of_another_shape(folder: Path) -> None:
    rewrite(folder, lambda tensors: tensors.update({"key.bias": torch.zeros(5)}))
    with pytest.raises(FrugalignError, match=r"key\.bias"):
        load_proxy(folder)


@pytest.mark.parametrize("cut", [4, 60, -3])
def test_a_truncated_file(folder: Path, cut: int) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(FrugalignError, match="truncated"):
        load_proxy(folder)


def test_a_damaged_header(folder: Path) -> None:
    path = folder / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[12:16] = b"\xff\xff\xff\xff"
    path.write_bytes(bytes(content))
    with pytest.raises(FrugalignError, match="tampered with or damaged"):
        load_proxy(folder)


def test_no_weights_no_config_and_no_folder(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    with pytest.raises(FrugalignError, match="does not exist"):
        load_proxy(folder)
    (folder / "config.json").unlink()
    with pytest.raises(FrugalignError, match=r"the folder has no config\.json"):
        load_proxy(folder)
    with pytest.raises(FrugalignError, match="No proxy in"):
        load_proxy(folder / "nowhere")


def test_another_kind_of_model(tmp_path: Path) -> None:
    llama().save_pretrained(tmp_path)
    with pytest.raises(FrugalignError, match="is not a frugalign proxy"):
        load_proxy(tmp_path)


def test_the_config_says_what_the_base_is(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    assert {"name", "revision", "width", "vocabulary", "tokenizer"} <= set(config["base"])
    assert config["objective"] == "marginal" and config["sha256"]


@pytest.mark.parametrize(
    "change", [{"objective": "nonsense"}, {"p_t": "a"}, {"width": "wide"}, {"base": "mine"}, {"temperature": 0}]
)
def test_a_damaged_config(folder: Path, change: dict[str, Any]) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(FrugalignError) as error:
        load_proxy(folder, llama(), tokenizer())
    assert str(folder) in str(error.value) and "\n" not in str(error.value)


def test_a_guided_model_from_its_folder(folder: Path) -> None:
    """The folder names its base; the two are loaded, checked against each other, and generate together."""
    from copy import copy

    from frugalign import GuidedModel

    base = folder.parent / "base"
    llama().save_pretrained(base)
    tokenizer().save_pretrained(base)
    guided = GuidedModel.from_pretrained(folder, base=str(base))
    ids = torch.tensor([[5, 6, 7]])
    with guided.attached():
        wanted = guided.model(ids).logits
    assert torch.equal(guided(ids).logits, wanted)
    assert not torch.equal(guided.model(ids).logits, wanted)
    assert guided.generate(ids, do_sample=False, max_new_tokens=3).shape == (1, 6)
    assert copy(guided).proxy is guided.proxy and guided.config is guided.model.config


def test_an_error_while_attaching_leaves_no_trace(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from frugalign.proxy.attachment import attach
    from frugalign.proxy.guide import ProxyGuide

    model, proxy = llama(), load_proxy(folder)
    model.generation_config.temperature = 0.3

    def fail(*_: Any, **__: Any) -> None:
        raise MemoryError

    monkeypatch.setattr(ProxyGuide, "build", fail)
    with pytest.raises(MemoryError), attach(model, proxy):
        pass
    assert model.generation_config.temperature == 0.3
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
