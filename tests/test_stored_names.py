"""Names stored in an artefact are folders or hub ids. Whatever else they say, no verb imports or calls it."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

import frugalign.sandbox as sandbox
from frugalign import GuidedModel
from frugalign.base.errors import FrugalignError
from frugalign.cli.main import main
from frugalign.engines.fingerprints import fingerprint
from frugalign.engines.loading import LoadedModel, load_model, load_stored_base
from frugalign.policies.steering import SteeringConfig, SteeringModel
from frugalign.proxy.network import new_proxy
from frugalign.rewards import load_reward
from frugalign.rewards.representation.network import RepresentationConfig, RepresentationModel
from frugalign.study.cell import run_cell
from frugalign.study.options import StudyOptions
from frugalign.study.plan import Line, cell_of, training_folder

EVIL = "evil_module_of_a_stranger"
CODE = f"{EVIL}:run"


@pytest.fixture(scope="module")
def base() -> LoadedModel:
    return load_model(sandbox.model)


@pytest.fixture
def ran(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that exists once the planted module is imported. The module is importable from the working directory."""
    mark = tmp_path / "ran"
    module = f"from pathlib import Path\nPath({str(mark)!r}).touch()\ndef run(*_, **__): return {sandbox.model!r}\n"
    (tmp_path / f"{EVIL}.py").write_text(module)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, EVIL, raising=False)
    prompts = [{"prompt": "A balm for my horse."}]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in prompts))
    return mark


def reward_folder(base: LoadedModel, folder: Path) -> Path:
    config = RepresentationConfig(width=base.model.config.hidden_size, layers=[2])
    config.base = fingerprint(base.model, base.tokenizer).to_dict()
    RepresentationModel(config).save_pretrained(folder)
    return folder


def proxy_folder(base: LoadedModel, folder: Path) -> Path:
    proxy = new_proxy(base.model, {"hidden": 2, "dim": 2})
    proxy.config.base = fingerprint(base.model, base.tokenizer).to_dict()
    proxy.save_pretrained(folder)
    return folder


def steering_folder(base: LoadedModel, folder: Path) -> Path:
    network = SteeringModel(SteeringConfig(width=base.model.config.hidden_size, layer=2))
    network.config.base = fingerprint(base.model, base.tokenizer).to_dict()
    network.save_pretrained(folder)
    return folder


def adapter_folder(base: LoadedModel, folder: Path) -> Path:
    fresh = load_model(base.name)
    get_peft_model(fresh.model, LoraConfig(r=1, target_modules="all-linear")).save_pretrained(folder)
    return folder


def plant(file: Path, change: Callable[[dict[str, Any]], None]) -> None:
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


VERBS = {
    "reward": [
        ["evaluate", "--dataset_name", "prompts.jsonl", "--reward", "ARTEFACT", "--max_new_tokens", "2"],
        ["generate", "--prompt", "A balm.", "--best_of_n", "2", "--selection_reward", "ARTEFACT", "--max_new_tokens", "2"],
        ["generate", "--prompt", "A balm.", "--guiding_reward", "ARTEFACT", "--max_new_tokens", "2"],
        ["psle", "--dataset_name", "prompts.jsonl", "--reward", "ARTEFACT", "--principles", "safety", "--output_dir", "out"],
        ["proxy", "--dataset_name", "prompts.jsonl", "--reward", "ARTEFACT", "--output_dir", "out"],
    ],
    "proxy": [
        ["evaluate", "--dataset_name", "prompts.jsonl", "--reward", "frugalign.sandbox:gold", "--proxy", "ARTEFACT"],
        ["generate", "--prompt", "A balm.", "--proxy", "ARTEFACT", "--max_new_tokens", "2"],
    ],
    "steering": [
        ["generate", "--prompt", "A balm.", "--steering", "ARTEFACT", "--max_new_tokens", "2"],
    ],
    "adapter": [
        ["generate", "--prompt", "A balm.", "--adapter", "ARTEFACT", "--max_new_tokens", "2"],
    ],
}  # fmt: skip
MAKE = {"reward": reward_folder, "proxy": proxy_folder, "steering": steering_folder, "adapter": adapter_folder}


def planted(kind: str, base: LoadedModel, folder: Path) -> Path:
    """An artefact whose every stored name is code."""
    MAKE[kind](base, folder)

    def change(content: dict[str, Any]) -> None:
        content |= {"auto_map": {"AutoConfig": CODE, "AutoModel": CODE}, "attn_implementation": CODE}
        if kind == "adapter":
            content |= {"base_model_name_or_path": CODE, "revision": CODE, "megatron_config": {}}
            content |= {"auto_mapping": {"base_model_class": "run", "parent_library": EVIL}, "megatron_core": EVIL}
        else:
            content["base"] |= {"name": CODE}
            content["trained_on"] = {"name": CODE, "fingerprint": CODE}

    plant(folder / ("adapter_config.json" if kind == "adapter" else "config.json"), change)
    (folder / "trained_on.json").write_text(json.dumps({"name": CODE, "fingerprint": CODE}))
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("kind", list(VERBS))
def test_no_verb_runs_a_name_that_an_artefact_stores(kind: str, base: LoadedModel, ran: Path, tmp_path: Path) -> None:
    """Each verb that reads the artefact uses it without the name, or refuses it; the planted module is never imported."""
    folder = planted(kind, base, tmp_path / "artefact")
    for words in VERBS[kind]:
        argv = [str(folder) if word == "ARTEFACT" else word for word in words]
        status = main([*argv, "--model_name_or_path", sandbox.model, "--use_cpu"])
        assert status in (0, 2), argv
        assert not ran.exists() and EVIL not in sys.modules, argv


@pytest.mark.parametrize("name", [CODE, f"  {CODE}", f"{EVIL}.py:run", f"./{EVIL}.py:run", f"{EVIL}.sub:run"])
def test_a_base_named_by_code_is_refused(name: str, base: LoadedModel, ran: Path, tmp_path: Path) -> None:
    reward, proxy = reward_folder(base, tmp_path / "reward"), proxy_folder(base, tmp_path / "proxy")
    for folder in (reward, proxy):
        plant(folder / "config.json", lambda content: content["base"].update(name=name))
    with pytest.raises(FrugalignError, match=EVIL):
        load_reward(str(reward)).function(prompts=["A balm."], completions=["Here."])
    with pytest.raises(FrugalignError, match=EVIL):
        GuidedModel.from_pretrained(proxy)
    assert not ran.exists()


@pytest.mark.parametrize("stored", [{"name": CODE}, {"name": 3}, {}, {"name": None}, {"name": "a/b", "adapter": CODE}])
def test_what_a_stored_base_may_say(stored: dict[str, Any], ran: Path) -> None:
    with pytest.raises(FrugalignError, match=r"The proxy names .* of its base"):
        load_stored_base(stored, "The proxy")
    assert not ran.exists()


def test_the_user_may_name_code_and_the_artefact_stores_its_folder(tmp_path: Path) -> None:
    """A base given as `module:attribute` is stored as the folder that it stands for."""
    loaded = load_model("frugalign.sandbox:model")
    found = fingerprint(loaded.model, loaded.tokenizer, name=loaded.name)
    assert loaded.name == "frugalign.sandbox:model" and found.name == sandbox.model
    assert torch.equal(
        load_stored_base(found.to_dict(), "The proxy").model.get_input_embeddings().weight,
        loaded.model.get_input_embeddings().weight,
    )


@pytest.mark.parametrize(
    "policy",
    [
        {"best_of_n": 2, "selection_reward": [CODE]},
        {"best_of_n": 2, "selection_reward": f"mine={EVIL}.py:run"},
        {"guiding_reward": [f"mine={CODE}"]},
        {"principles": CODE},
    ],
)
def test_a_study_runs_no_code_that_only_a_finished_training_names(
    policy: dict[str, Any], ran: Path, tmp_path: Path
) -> None:
    options = StudyOptions(
        model_name_or_path=sandbox.model,
        dataset_name=sandbox.prompts,
        reward=["frugalign.sandbox:gold"],
        judges=["frugalign.sandbox:gold"],
        seeds=[1],
        methods={"base": None},
        output_dir=str(tmp_path / "study"),
    )
    cell = cell_of(Line("base", "base", {}), 1, "test", options)
    folder, trainings = cell.folder(tmp_path / "study"), tmp_path / "trainings"
    folder.mkdir(parents=True)
    (folder / "request.json").write_text(json.dumps(cell.request))
    training = training_folder(cell.request, trainings)
    training.mkdir(parents=True)
    (training / "trained.json").write_text(json.dumps({"policy": policy, "costs": {}, "machine": {}}))
    with pytest.raises(FrugalignError, match="Stored code is never run"):
        run_cell(folder, tmp_path / "start", trainings)
    assert not ran.exists()
