"""Uploads to a stand-in of the hub by its real client: what goes there, what does not, and that it loads from there."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.engines.toy_bases import save_base
from tests.methods.proxy_rlhf.small_trainer import trainer
from tests.proxy.tiny_llama import llama, tokenizer
from tests.runs.hub_stand_in import TOKEN, Hub, running
from tests.two_layers import two_layers

from frugalign.base.errors import FrugalignError
from frugalign.engines.fingerprints import fingerprint
from frugalign.engines.loading import load_model
from frugalign.policies.steering import SteeringConfig, SteeringModel, load_steering
from frugalign.proxy.network import load_proxy, new_proxy
from frugalign.runs.hub import Upload, push


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with running(tmp_path, monkeypatch) as found:
        yield found


def proxy_in(folder: Path, base: str = "/home/someone/models/tiny") -> Any:
    model = llama()
    proxy = new_proxy(model, {})
    proxy.config.base = fingerprint(model, tokenizer(), name=base).to_dict()
    proxy.config.trained_on = {"name": "/home/someone/prompts.jsonl", "examples": 3}
    torch.nn.init.normal_(proxy.query_out.weight)
    proxy.save_pretrained(folder)
    return proxy


def test_a_proxy_comes_back_from_the_hub_as_it_was(hub: Hub, tmp_path: Path) -> None:
    """Only its own files are sent, in one commit, and nothing names a folder of this machine."""
    run = tmp_path / "mine"
    proxy = proxy_in(run)
    (run / "README.md").write_text("# A proxy\n\nBase model: `/home/someone/models/tiny`.\n")
    (run / "metrics.jsonl").write_text(json.dumps({"step": 4, "reward": 0.25, "kl": 1.5}) + "\n")
    (run / "completions.jsonl").write_text("{}\n")
    assert push(run, Upload("mine", private=True)) == f"{hub.url}/me/mine"
    repository = hub["me/mine"]
    assert repository.private is True
    assert repository.commits == [("Upload the proxy", ["README.md", "config.json", "model.safetensors"])]
    assert all(b"someone" not in content for content in repository.files.values())
    card = repository.files["README.md"].decode()
    assert "Base model: `tiny`." in card and "| reward (last of the training) | 0.25 |" in card
    assert "GuidedModel.from_pretrained('me/mine', base='tiny')" in card
    found = load_proxy("me/mine", llama(), tokenizer())
    assert all(torch.equal(value, proxy.state_dict()[name]) for name, value in found.state_dict().items())
    assert found.config.base["name"] == "tiny" and found.config.trained_on["name"] == "prompts.jsonl"
    assert json.loads((run / "config.json").read_text())["base"]["name"] == "/home/someone/models/tiny", "the run stays"


def test_a_base_of_the_hub_is_not_asked_for_again(hub: Hub, tmp_path: Path) -> None:
    proxy_in(tmp_path / "run", base="owner/tiny")
    push(tmp_path / "run", Upload("team/other"))
    push(tmp_path / "run", Upload("team/other"))  # exists now
    assert "from_pretrained('team/other')\n" in hub["team/other"].files["README.md"].decode()
    assert len(hub["team/other"].commits) == 2


def test_a_steering_vector_comes_back(hub: Hub, tmp_path: Path) -> None:
    model = llama()
    vector = SteeringModel(SteeringConfig(width=model.config.hidden_size, layer=1, strength=2.0))
    vector.config.base = fingerprint(model, tokenizer(), name="/models/tiny").to_dict()
    torch.nn.init.normal_(vector.vector)
    vector.save_pretrained(tmp_path / "vector")
    push(tmp_path / "vector", Upload("vector"))
    assert torch.equal(load_steering("me/vector").vector, vector.vector)
    assert (
        "frugalign chat --model_name_or_path tiny --steering me/vector" in hub["me/vector"].files["README.md"].decode()
    )


@pytest.mark.parametrize("train", ["lora", "full"])
def test_an_adapter_and_a_model_load_from_the_hub(train: str, hub: Hub, tmp_path: Path) -> None:
    """With the record that loading checks, and with `push_to_hub` at the end of their training."""
    from types import SimpleNamespace

    from peft import get_peft_model

    from frugalign.base.ledger import Ledger
    from frugalign.runs.save_policy import lora_of, save_policy

    base, run = str(save_base(tmp_path / "base")), tmp_path / "run"
    loaded = load_model(base, device_map="cpu")
    args = SimpleNamespace(
        output_dir=str(run), train=train, model_name_or_path=base, lora_r=2, lora_alpha=4, push_to_hub=True,
        hub_model_id="tuned", hub_private_repo=None, options=lambda: {"output_dir": str(run)},
    )  # fmt: skip
    policy = get_peft_model(loaded.model, lora_of(args)) if train == "lora" else loaded.model
    save_policy(policy, loaded.tokenizer, args, Ledger(), trained_on={}, done="tuned", description="A test.")
    files = hub["me/tuned"].files
    assert not {"costs.json", "trained_on.json", "config.yaml"} & set(files) and "tokenizer.json" in files
    assert all(str(tmp_path).encode() not in content for content in files.values())
    name, adapter = (base, "me/tuned") if train == "lora" else ("me/tuned", None)
    ids = torch.tensor([[5, 6]])
    again = load_model(name, adapter=adapter, device_map="cpu").model
    assert torch.equal(again(ids).logits, policy(ids).logits)


def test_a_trainer_uploads_what_it_has_trained(hub: Hub, tmp_path: Path) -> None:
    """At its end and not at its checkpoints, where Trainer would upload the run folder."""
    found = trainer(load_model(two_layers()), tmp_path / "run", push_to_hub=True, hub_model_id="trained", save_steps=2)
    found.train()
    assert not hub.repositories and {path for _, path in hub.requests} == {"/api/whoami-v2"}
    found.save_model()
    assert hub["me/trained"].commits == [("Upload the proxy", ["README.md", "config.json", "model.safetensors"])]
    again = load_proxy("me/trained", found.lm, found.processing_class)
    assert all(torch.equal(value, found.model.state_dict()[name]) for name, value in again.state_dict().items())


@pytest.mark.parametrize("damage", ["no artefact", "weights", "refused", "no token"])
def test_what_cannot_be_uploaded_is_one_sentence(
    damage: str, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    proxy_in(run)
    said = {
        "no artefact": "holds no finished artefact",
        "weights": "has been changed since it was saved",
        "refused": r"is complete, but was not uploaded: .*`frugalign push .*` tries again",
        "no token": r"is complete, but was not uploaded: .*401",
    }[damage]
    if damage == "no artefact":
        (run / "config.json").unlink()
    elif damage == "weights":
        content = bytearray((run / "model.safetensors").read_bytes())
        content[-2] ^= 1
        (run / "model.safetensors").write_bytes(content)
    elif damage == "refused":
        hub.fails = True
        monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
    else:
        monkeypatch.setenv("HF_TOKEN", "another")
    with pytest.raises(FrugalignError, match=said) as error:
        push(run, Upload("mine"))
    assert "\n" not in str(error.value) and TOKEN not in str(error.value)
    assert not hub.repositories or not hub["me/mine"].files
