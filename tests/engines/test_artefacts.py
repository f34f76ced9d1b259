"""Saved artefacts: what was changed, damaged or belongs to another base is refused in one sentence, and paths survive a move."""

import copy
import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.engines.toy_bases import ARTEFACTS, CONFIG, WEIGHTS, save_artefact, save_base

from frugalign import GuidedModel
from frugalign.base.errors import FrugalignError
from frugalign.engines.loading import LoadedModel, load_model
from frugalign.engines.model_records import record_model
from frugalign.policies import loading as policies
from frugalign.policies.spec import PolicySpec, ProxySpec
from frugalign.proxy.attachment import attach
from frugalign.proxy.network import ProxyModel, load_proxy
from frugalign.rewards import load_reward
from frugalign.rewards.representation.network import RepresentationModel


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base and one artefact of every kind."""
    folder = tmp_path_factory.mktemp("saved")
    save_base(folder / "base")
    for kind in ARTEFACTS:
        save_artefact(kind, folder / "base", folder / kind)
    return folder


@pytest.fixture
def mine(saved: Path, tmp_path: Path) -> Path:
    """A copy to change."""
    return Path(shutil.copytree(saved, tmp_path / "mine"))


def use(kind: str, folder: Path, base: Path | LoadedModel | None = None) -> Any:
    """Load the artefact and use it on its base, or on another, possibly loaded already."""
    if kind == "reward":
        reward: Any = load_reward(str(folder)).function
        if base is not None:
            reward.base = base if isinstance(base, LoadedModel) else load_model(str(base), device_map="cpu")
        return reward(prompts=["w5 w6"], completions=["w7 w8"])
    if kind == "proxy" and isinstance(base, LoadedModel):
        with attach(base.model, load_proxy(folder, base.model, base.tokenizer)):
            return base.model(torch.tensor([[5, 6, 7]])).logits
    if kind == "proxy":
        guided = GuidedModel.from_pretrained(folder, base=None if base is None else str(base), device_map="cpu")
        return guided(torch.tensor([[5, 6, 7]])).logits
    spec = PolicySpec(str(base or folder.parent / "base"), adapter=str(folder), device_map="cpu")
    return policies.load(spec).model(torch.tensor([[5, 6, 7]])).logits


def refusal(kind: str, folder: Path, base: Path | LoadedModel | None = None) -> str:
    with pytest.raises(FrugalignError) as error:
        use(kind, folder, base)
    assert "\n" not in str(error.value) and len(str(error.value)) < 600
    return str(error.value)


def rewrite(file: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


CHANGES: dict[str, list[dict[str, Any]]] = {
    "proxy": [
        {"max_candidates": 7},
        {"embedding_scale": 2.0},
        {"temperature": 0.7},
        {"p_t": 0.02},
        {"objective": "sequential"},
        {"max_new_tokens": 5},
        {"prompt_format": "raw"},
        {"trained_on": {"held_out_fraction": 0.5}},
    ],
    "reward": [{"layers": [0, 2]}, {"mu": 0.4}, {"scale": 0.8}, {"max_length": 3}, {"prompt_format": "chat"}],
    "adapter": [{"lora_alpha": 99}, {"use_rslora": True}, {"r": 4}, {"target_modules": ["v_proj"]}],
}


@pytest.mark.parametrize(("kind", "change"), [(kind, change) for kind in CHANGES for change in CHANGES[kind]])
def test_a_setting_that_changes_results_is_under_the_hash(kind: str, change: dict[str, Any], mine: Path) -> None:
    rewrite(mine / kind / CONFIG[kind], lambda content: content.update(change))
    assert "has been changed since it was saved" in refusal(kind, mine / kind)


@pytest.mark.parametrize("kind", ARTEFACTS)
def test_one_changed_weight_of_the_artefact(kind: str, mine: Path) -> None:
    file = mine / kind / WEIGHTS[kind]
    tensors = load_file(file)
    name = sorted(tensors)[-1]
    tensors[name].view(-1)[-1] += 1e-6
    save_file(tensors, file, {"format": "pt"})
    assert "has been changed since it was saved" in refusal(kind, mine / kind)


@pytest.mark.parametrize("kind", ARTEFACTS)
@pytest.mark.parametrize("place", ["first", "middle", "last"])
@pytest.mark.parametrize("by", [1.0, 1e-6])
def test_one_changed_weight_anywhere_in_the_base(kind: str, place: str, by: float, mine: Path) -> None:
    """Wherever the weight is, and by however little."""
    file = mine / "base" / "model.safetensors"
    tensors = load_file(file)
    names = sorted(tensors)
    flat = tensors[names[{"first": 0, "middle": len(names) // 2, "last": -1}[place]]].view(-1)
    flat[{"first": 0, "middle": len(flat) // 2 + 1, "last": -1}[place]] += by
    save_file(tensors, file, {"format": "pt"})
    assert "was trained on" in refusal(kind, mine / kind, mine / "base") or "weights" in refusal(kind, mine / kind)


def test_the_base_in_bfloat16_is_the_same_base(mine: Path) -> None:
    spec = PolicySpec(str(mine / "base"), proxy=(ProxySpec(str(mine / "proxy")),), dtype="bfloat16", device_map="cpu")
    assert policies.load(spec).guide is not None


def test_an_adapter_that_peft_alone_saved_is_accepted(mine: Path) -> None:
    (mine / "adapter" / "frugalign_adapter.json").unlink()
    rewrite(mine / "adapter" / "adapter_config.json", lambda content: content.update(lora_alpha=99))
    assert use("adapter", mine / "adapter").shape == (1, 3, 64)


@pytest.mark.parametrize("kind", ["proxy", "reward"])
def test_an_artefact_works_from_any_folder_and_after_a_move(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Saved with a relative base; used from another working directory; then moved together with its base."""
    (tmp_path / "work").mkdir()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    save_base(Path("models/base"))
    save_artefact(kind, "models/base", Path("runs/mine"))
    monkeypatch.chdir(tmp_path / "elsewhere")
    first = use(kind, tmp_path / "work" / "runs" / "mine")
    (tmp_path / "work").rename(tmp_path / "moved")
    assert torch.equal(torch.as_tensor(use(kind, tmp_path / "moved" / "runs" / "mine")), torch.as_tensor(first))
    shutil.rmtree(tmp_path / "moved" / "models")
    assert "base" in refusal(kind, tmp_path / "moved" / "runs" / "mine")


@pytest.mark.parametrize(
    ("lacking", "change"),
    [
        ("prompt_format", lambda content: content.pop("prompt_format")),
        ("sha256", lambda content: content.pop("sha256")),
        # The tokenizer was one hash before the config was compared.
        ("config", lambda content: (content["base"].pop("config"), content["base"].update(tokenizer="1f"))),
        ("width", lambda content: content["base"].pop("width")),
        ("relative paths", lambda content: content["base"].pop("relative")),
    ],
)
@pytest.mark.parametrize("kind", ["proxy", "reward"])
def test_an_artefact_of_another_version_is_not_called_damaged(
    kind: str, lacking: str, change: Callable[[dict[str, Any]], Any], mine: Path
) -> None:
    rewrite(mine / kind / CONFIG[kind], change)
    said = refusal(kind, mine / kind)
    assert "was saved by another version of frugalign" in said and said.endswith(
        f"without its {lacking}: train it again."
    )


def test_a_field_of_another_type_is_damaged(mine: Path) -> None:
    rewrite(mine / "proxy" / CONFIG["proxy"], lambda content: content["base"].update(width="16"))
    assert refusal("proxy", mine / "proxy").endswith("its width is damaged.")


@pytest.mark.parametrize("content", ["", "{", "[]", "null", "[" * 100_000, '{"model_type": 3}', "\x00", '{"a": NaN}'])
@pytest.mark.parametrize("kind", ARTEFACTS)
def test_a_config_that_is_no_config(kind: str, content: str, mine: Path) -> None:
    (mine / kind / CONFIG[kind]).write_text(content)
    assert str(mine / kind) in refusal(kind, mine / kind)


ODD = [
    None,
    True,
    -1,
    0,
    10**400,
    2**63,
    1.5,
    float("nan"),
    float("inf"),
    "x" * 10_000,
    "",
    [],
    [1],
    [[1]],
    {},
    {"a": {}},
]


def mutated(content: dict[str, Any], draw: random.Random) -> dict[str, Any]:
    """One random field, at the top or inside `base`, dropped or replaced."""
    found = copy.deepcopy(content)
    inside = found["base"] if isinstance(found.get("base"), dict) and draw.random() < 0.4 else found
    key = draw.choice(sorted(inside))
    if draw.random() < 0.25:
        del inside[key]
    else:
        inside[key] = draw.choice(ODD)
    return found


@pytest.mark.parametrize("kind", ARTEFACTS)
@pytest.mark.slow
def test_no_mutation_of_a_config_ends_in_a_traceback_or_in_silence(kind: str, mine: Path) -> None:
    """Each is refused in a sentence, or changes nothing that is used."""
    base = None if kind == "adapter" else load_model(str(mine / "base"), device_map="cpu")
    rounds = 40 if kind == "adapter" else 250
    file = mine / kind / CONFIG[kind]
    content, wanted, draw = json.loads(file.read_text()), use(kind, mine / kind), random.Random(0)
    refused = 0
    for _ in range(rounds):
        file.write_text(json.dumps(mutated(content, draw)))
        try:
            found = use(kind, mine / kind, base)
        except FrugalignError as error:
            assert "\n" not in str(error) and len(str(error)) < 1000
            refused += 1
        else:
            assert torch.equal(torch.as_tensor(found), torch.as_tensor(wanted)), file.read_text()[:300]
    assert refused > rounds / 2


@pytest.mark.parametrize("kind", ARTEFACTS)
def test_no_mutation_of_the_weights_file_is_used(kind: str, mine: Path) -> None:
    file = mine / kind / WEIGHTS[kind]
    whole, draw = file.read_bytes(), random.Random(1)
    for _ in range(20):
        damaged = bytearray(whole)
        if draw.random() < 0.3:
            damaged = damaged[: draw.randrange(len(damaged))]
        else:
            place = draw.randrange(len(damaged))
            damaged[place] ^= 1 << draw.randrange(8)
        file.write_bytes(bytes(damaged))
        assert str(mine / kind) in refusal(kind, mine / kind)


@pytest.mark.parametrize("kind", ["proxy", "reward"])
def test_tensors_that_do_not_fit(kind: str, mine: Path) -> None:
    """Another shape, a missing and a foreign tensor, integers, and NaN."""
    file = mine / kind / "model.safetensors"
    whole = load_file(file)
    name = sorted(whole)[0]
    for changed in (
        {**whole, name: torch.zeros(3, 3)},
        {key: value for key, value in whole.items() if key != name},
        {**whole, "stranger": torch.zeros(1)},
        {**whole, name: whole[name].to(torch.int32)},
        {**whole, name: whole[name] * float("nan")},
    ):
        save_file(changed, file, {"format": "pt"})
        message = refusal(kind, mine / kind)
        assert str(mine / kind) in message and (name in message or "stranger" in message)


@pytest.mark.parametrize("change", [{"width": 10**9, "hidden": 10**9}, {"vocabulary": 10**9}, {"layers": [0] * 10**6}])
def test_a_huge_network_takes_no_memory(change: dict[str, Any], mine: Path) -> None:
    kind = "reward" if "layers" in change else "proxy"
    rewrite(mine / kind / "config.json", lambda content: content.update(change))
    refusal(kind, mine / kind)


def test_a_given_proxy_keeps_its_settings_through_a_round_trip(mine: Path) -> None:
    """Saved again elsewhere, the artefact is whole, and finds its base from there."""
    load_proxy(mine / "proxy").save_pretrained(mine / "deeper" / "again")
    again = load_proxy(mine / "deeper" / "again")
    assert (mine / "deeper" / "again" / again.config.base["relative"]["name"]).resolve() == Path(
        again.config.base["name"]
    ).resolve()
    assert again.config.sha256 == load_proxy(mine / "proxy").config.sha256


@pytest.mark.parametrize(
    "change",
    [{"rms_norm_eps": 0.1}, {"hidden_act": "gelu"}, {"max_position_embeddings": 99}, {"num_key_value_heads": 1}],
)
@pytest.mark.parametrize("kind", ARTEFACTS)
def test_a_base_with_another_config_is_refused_by_name(kind: str, change: dict[str, Any], mine: Path) -> None:
    """The weights are the same, except that other heads need others."""
    other = Path(shutil.copytree(mine / "base", mine / "other"))
    rewrite(other / "config.json", lambda content: content.update(change))
    if "num_key_value_heads" in change:
        assert "mismatch" in refusal(kind, mine / kind, other) or "Cannot load" in refusal(kind, mine / kind, other)
        return
    assert f"they differ in config {next(iter(change))} (" in refusal(kind, mine / kind, other)


@pytest.mark.parametrize("kind", ARTEFACTS)
def test_a_base_with_another_template_or_tokenizer_is_refused_by_name(kind: str, mine: Path) -> None:
    other = Path(shutil.copytree(mine / "base", mine / "other"))
    (other / "chat_template.jinja").write_text("{{ messages[0].content }}")
    assert "they differ in chat template." in refusal(kind, mine / kind, other)
    (other / "chat_template.jinja").unlink()
    rewrite(other / "tokenizer.json", lambda content: content.update(normalizer={"type": "Lowercase"}))
    assert "they differ in tokenizer (normalizer)." in refusal(kind, mine / kind, other)


@pytest.mark.parametrize(("kind", "network"), [("proxy", ProxyModel), ("reward", RepresentationModel)])
def test_from_pretrained_refuses_what_was_changed(kind: str, network: Any, mine: Path) -> None:
    """By every way to load it; whole, it is loaded as in transformers."""
    found = network.from_pretrained(mine / kind, dtype=torch.bfloat16)
    assert next(found.parameters()).dtype == torch.bfloat16
    file = mine / kind / "model.safetensors"
    tensors = load_file(file)
    tensors[min(tensors)].view(-1)[0] += 1e-6
    save_file(tensors, file, {"format": "pt"})
    for arguments in ((mine / kind,), (str(mine / kind),)):
        with pytest.raises(FrugalignError, match="has been changed since it was saved"):
            network.from_pretrained(*arguments)
    with pytest.raises(FrugalignError, match="has been changed since it was saved"):
        network.from_pretrained(pretrained_model_name_or_path=mine / kind)


def _edit_weight(folder: Path) -> str:
    file = folder / "model.safetensors"
    tensors = load_file(file)
    tensors[min(tensors)].view(-1)[0] += 1e-6
    save_file(tensors, file, {"format": "pt"})
    return file.name


def _edit_config(folder: Path) -> str:
    rewrite(folder / "config.json", lambda content: content.update(rms_norm_eps=0.1))
    return "config.json"


def _edit_end_tokens(folder: Path) -> str:
    rewrite(folder / "generation_config.json", lambda content: content.update(eos_token_id=[1, 2]))
    return "generation_config.json"


def _add_template(folder: Path) -> str:
    (folder / "chat_template.jinja").write_text("{{ messages[0].content }}")
    return "chat_template.jinja"


def _drop_generation_config(folder: Path) -> str:
    (folder / "generation_config.json").unlink()
    return "generation_config.json"


def _edit_tokenizer(folder: Path) -> str:
    rewrite(folder / "tokenizer.json", lambda content: content.update(normalizer={"type": "Lowercase"}))
    return "tokenizer.json"


@pytest.mark.parametrize(
    "change", [_edit_weight, _edit_config, _edit_end_tokens, _add_template, _drop_generation_config, _edit_tokenizer]
)
def test_a_whole_model_that_we_trained_is_under_one_hash(change: Callable[[Path], str], mine: Path) -> None:
    """Without its record it is a model like any other."""
    record_model(mine / "base")
    (mine / "base" / "README.md").write_text("about it")
    assert load_model(str(mine / "base"), device_map="cpu").name
    name = change(mine / "base")
    with pytest.raises(FrugalignError) as error:
        load_model(str(mine / "base"), device_map="cpu")
    assert f"has been changed since it was saved: {name} does not have the hash in" in str(error.value)
    (mine / "base" / "frugalign_model.json").unlink()
    load_model(str(mine / "base"), device_map="cpu")


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"files": 3}', '{"files": {}}', "[" * 100_000])
def test_a_damaged_record_of_a_model_is_one_sentence(content: str, mine: Path) -> None:
    (mine / "base" / "frugalign_model.json").write_text(content)
    with pytest.raises(FrugalignError, match=r"frugalign_model\.json is"):
        load_model(str(mine / "base"), device_map="cpu")
