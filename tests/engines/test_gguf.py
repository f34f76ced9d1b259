"""A base from a GGUF file: the model that was written, found again by its artefacts, trained and saved like any other."""

from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("gguf", reason="the package gguf is not installed")

from tests.engines.toy_gguf import TEMPLATE, build, write

from frugalign import GuidedModel
from frugalign.base.errors import FrugalignError
from frugalign.engines.fingerprints import check_base, fingerprint
from frugalign.engines.loading import check_model, load_model
from frugalign.proxy.network import new_proxy

IDS = torch.tensor([[1, 72, 101, 260, 33, 9, 200]])


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One model in several forms."""
    folder = tmp_path_factory.mktemp("gguf")
    for form in ("F32", "Q8_0", "Q4_1"):
        write(build(), folder / f"{form}.gguf", form)
    return {path.stem: path for path in folder.iterdir()}


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=IDS).logits


def test_the_file_is_the_model_that_was_written(files: dict[str, Path]) -> None:
    """Weights, rotary halves, config, tokenizer, end tokens and chat template."""
    check_model(str(files["F32"]))
    loaded = load_model(str(files["F32"]))
    torch.testing.assert_close(logits(loaded.model), logits(build()), atol=1e-4, rtol=0)
    words = loaded.tokenizer
    assert words.decode(words("hello there")["input_ids"]) == "hello there" and len(words("hello")["input_ids"]) == 1
    assert words.chat_template == TEMPLATE and words.eos_token_id == 2 and words.padding_side == "left"
    near = logits(load_model(str(files["Q8_0"])).model) - logits(build())
    assert 1e-3 < near.abs().max() < 0.5 * logits(build()).std()


def test_an_unpacked_model_trains_and_saves_like_any_other(files: dict[str, Path], tmp_path: Path) -> None:
    """Its weights keep the values of the file."""
    loaded = load_model(str(files["Q4_1"]))
    model: Any = loaded.model
    assert not model.is_quantized
    model.save_pretrained(tmp_path / "saved")
    loaded.tokenizer.save_pretrained(tmp_path / "saved")
    assert torch.equal(logits(load_model(str(tmp_path / "saved")).model), logits(model))
    model.requires_grad_(True).train()
    model(input_ids=IDS, labels=IDS).loss.backward()
    assert model.model.layers[0].mlp.up_proj.weight.grad.abs().max() > 0


def test_a_proxy_finds_its_file_again(
    files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """By its absolute path, or beside it after a move. Another form of the model is accepted with a warning."""
    monkeypatch.chdir(files["Q8_0"].parent)
    base = load_model("Q8_0.gguf")
    proxy = new_proxy(base.model, {}, seed=0)
    proxy.config.base = fingerprint(base.model, base.tokenizer, name=base.name).to_dict()
    assert proxy.config.base["name"] == str(files["Q8_0"].absolute())
    proxy.save_pretrained(tmp_path / "proxy")
    monkeypatch.chdir(tmp_path)
    guided = GuidedModel.from_pretrained(tmp_path / "proxy")
    assert torch.equal(logits(guided.model), logits(base.model)) and not caplog.messages
    GuidedModel.from_pretrained(tmp_path / "proxy", base=str(files["Q4_1"]))
    assert "Q4_1.gguf is the same model in another precision: the weights are rounded otherwise" in caplog.text
    write(build(seed=1), tmp_path / "other.gguf", "Q8_0")
    with pytest.raises(FrugalignError, match="they differ in weights of embeddings and norms; weights of the layers"):
        GuidedModel.from_pretrained(tmp_path / "proxy", base=str(tmp_path / "other.gguf"))
    elsewhere = fingerprint(base.model, base.tokenizer, name=base.name).to_dict() | {
        "name": str(tmp_path / "gone.gguf")
    }
    proxy.config.base = elsewhere
    proxy.save_pretrained(tmp_path / "lost")
    with pytest.raises(FrugalignError, match=r"belongs to the model in .*gone\.gguf, which is not there"):
        GuidedModel.from_pretrained(tmp_path / "lost")


def test_the_hugging_face_base_and_its_file_are_one_model(
    files: dict[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Silently at full precision, with a warning in eight bits."""
    model, words = build(), load_model(str(files["F32"])).tokenizer
    base = fingerprint(model.to(torch.bfloat16), words, name="hub").to_dict()
    full = load_model(str(files["F32"]))
    check_base(base, fingerprint(full.model, full.tokenizer), "The proxy")
    assert not caplog.messages
    packed = load_model(str(files["Q8_0"]))
    check_base(base, fingerprint(packed.model, packed.tokenizer), "The proxy")
    assert "another precision: the weights are rounded otherwise, by 0." in caplog.messages[-1]


def test_what_cannot_be_read_is_one_sentence(
    files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    whole = files["F32"].read_bytes()
    Path("cut.gguf").write_bytes(whole[: len(whole) // 2])
    Path("text.gguf").write_text("weights")
    Path("right.gguf").write_bytes(whole)
    for name, says in {
        "rigth.gguf": "No model in rigth.gguf: there is no such file; did you mean right.gguf?",
        "none/model.gguf": "No model in none/model.gguf: there is no such file.",
        "text.gguf": "text.gguf is not a GGUF file, or it is damaged: it does not begin with GGUF.",
        "cut.gguf": "Cannot load the model 'cut.gguf': ",
    }.items():
        with pytest.raises(FrugalignError) as error:
            load_model(name)
        assert str(error.value).startswith(says) and "\n" not in str(error.value)
    with pytest.raises(FrugalignError, match=r"load_in_4bit is for plain weights, and those in right.gguf are a GGUF"):
        load_model("right.gguf", load_in_4bit=True)
    monkeypatch.setattr("frugalign.engines.gguf.is_gguf_available", lambda: False)
    with pytest.raises(FrugalignError, match=r"Reading right.gguf needs the package gguf, which is not installed: pip"):
        load_model("right.gguf")
