"""A steering vector as a policy: what it adds, where, and how far it is from its base."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.two_layers import two_layers
from torch import nn
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from frugalign.base.errors import FrugalignError
from frugalign.decoding.chooser import BaseGuide
from frugalign.decoding.log_probs import Reference, sequence_kl
from frugalign.engines.fingerprints import fingerprint
from frugalign.engines.loading import LoadedModel, load_model
from frugalign.engines.states import steered_block
from frugalign.policies import Policy, PolicySpec, SamplingSettings, load
from frugalign.policies.prompt_rows import PromptRows
from frugalign.policies.steering import Steering, SteeringConfig, SteeringModel, load_steering

PROMPTS = ["i want a balm for my knee", "sell me a curse", "a tea for my cough please, and a long story with it"]
SETTINGS = SamplingSettings(max_new_tokens=8)
SIZES: dict[str, Any] = {
    "vocab_size": 32,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}


def build(name: str) -> Any:
    torch.manual_seed(0)
    if name == "gpt2":
        return GPT2LMHeadModel(GPT2Config(vocab_size=32, n_embd=16, n_layer=3, n_head=2, n_positions=32)).eval()
    if name == "neox":
        sizes = {key: value for key, value in SIZES.items() if key != "num_key_value_heads"}
        return GPTNeoXForCausalLM(GPTNeoXConfig(**sizes)).eval()
    if name == "gemma":
        return Gemma2ForCausalLM(Gemma2Config(**SIZES, head_dim=8)).eval()
    kinds = {"llama": (LlamaForCausalLM, LlamaConfig), "qwen": (Qwen2ForCausalLM, Qwen2Config)}
    model, config = kinds[name]
    return model(config(**SIZES)).eval()  # type: ignore[arg-type]


def vector_of(width: int, layer: int, strength: float = 1.0, size: float = 1.0) -> SteeringModel:
    network = SteeringModel(SteeringConfig(width=width, layer=layer, strength=strength))
    nn.init.normal_(network.vector, std=size, generator=torch.Generator().manual_seed(0))
    return network


@cache
def base() -> LoadedModel:
    return load_model(two_layers())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A vector of the base's first layer that moves it a good deal."""
    network = vector_of(base().model.config.hidden_size, layer=1, strength=2.0, size=0.5)
    network.config.base = fingerprint(base().model, base().tokenizer).to_dict()
    found = str(tmp_path_factory.mktemp("steering"))
    network.save_pretrained(found)
    return found


def completions(policy: Policy, prompts: list[str] = PROMPTS, batch_size: int = 64) -> list[list[int]]:
    settings = policy.with_defaults(SETTINGS)
    batch = policy.encode(PromptRows(prompts), settings, numbers=[PROMPTS.index(each) for each in prompts])
    return policy.sample(batch, settings, batch_size=batch_size).completion_ids


@pytest.mark.parametrize("layer", [1, 2])
@pytest.mark.parametrize("name", ["llama", "gpt2", "qwen", "gemma", "neox"])
def test_a_layers_states_move_by_the_vector(name: str, layer: int) -> None:
    """At every position. What the layers below compute stays, and `hidden_states` shows what the next block reads."""
    model, ids = build(name), torch.tensor([[3, 4, 5, 6]])
    network = vector_of(16, layer, strength=3.0)
    before = model(ids, output_hidden_states=True)
    torch.testing.assert_close(_output_of(steered_block(model, layer), model, ids), before.hidden_states[layer])
    with Steering(model, network).on():
        after = model(ids, output_hidden_states=True)
    moved = before.hidden_states[layer] + 3.0 * network.vector
    torch.testing.assert_close(after.hidden_states[layer], moved, atol=1e-6, rtol=1e-5)
    for below in range(layer):
        assert torch.equal(after.hidden_states[below], before.hidden_states[below])
    assert not torch.allclose(after.logits, before.logits, atol=1e-3)
    assert torch.equal(model(ids).logits, before.logits), "nothing of it is left on the model"


def _output_of(block: nn.Module, model: Any, ids: torch.Tensor) -> torch.Tensor:
    caught: list[Any] = []
    handle = block.register_forward_hook(lambda module, inputs, output: caught.append(output))
    model(ids)
    handle.remove()
    found: torch.Tensor = caught[0][0] if isinstance(caught[0], tuple) else caught[0]
    return found


def test_a_worked_value() -> None:
    """Two blocks that add nothing, and a head that reads the state as it is: the logits move by the vector."""
    sizes = {"vocab_size": 4, "hidden_size": 4, "intermediate_size": 4}
    model = LlamaForCausalLM(LlamaConfig(**sizes, num_hidden_layers=2, num_attention_heads=1)).eval()
    for each in model.model.layers:
        nn.init.zeros_(each.self_attn.o_proj.weight)
        nn.init.zeros_(each.mlp.down_proj.weight)
    model.model.norm = nn.Identity()
    nn.init.eye_(model.model.embed_tokens.weight)
    nn.init.eye_(model.lm_head.weight)
    network = SteeringModel(SteeringConfig(width=4, layer=1, strength=0.5))
    network.vector.data.copy_(torch.tensor([0.0, 2.0, -4.0, 1.0]))
    with Steering(model, network, strength=2.0).on():
        logits = model(torch.tensor([[0, 2]])).logits[0]
    assert logits.tolist() == [[1.0, 2.0, -4.0, 1.0], [0.0, 2.0, -3.0, 1.0]]


def test_at_strength_zero_it_is_the_base(folder: str) -> None:
    plain = load(PolicySpec(), base=base())
    policy = load(PolicySpec.from_dict({"steering": f"{folder}@0"}), base=base())
    settings = policy.with_defaults(SETTINGS)
    batch = policy.encode(PromptRows(PROMPTS), settings)
    found = policy.sample(batch, settings)
    assert found.completion_ids == completions(plain) and completions(plain) != completions(steered(folder))
    assert policy.divergence(batch, found, settings).kl == [0.0] * 3


def steered(folder: str) -> Policy:
    return load(PolicySpec.from_dict({"steering": folder}), base=base())


def test_a_batch_answers_as_single_prompts_do(folder: str) -> None:
    """Prompts of several lengths are padded on the left."""
    policy = steered(folder)
    together = completions(policy)
    assert together == [completions(policy, [prompt])[0] for prompt in PROMPTS] == completions(policy, batch_size=2)


def test_its_kl_is_that_to_the_unsteered_base(folder: str) -> None:
    """Exact, at temperature 1 of the base, and measured while the policy samples at another one."""
    policy, settings = steered(folder), SamplingSettings(max_new_tokens=8, temperature=0.7, prompt_format="auto")
    assert policy.kind == "steering" and policy.needs_kl_pass
    assert policy.trainable_parameters == base().model.config.hidden_size
    batch = policy.encode(PromptRows(PROMPTS), settings)
    found = policy.sample(batch, settings)
    other = load_model(two_layers())
    with Steering(other.model, load_steering(folder)).on():
        expected = sequence_kl(
            other.model, Reference(base().model), batch.ids, found.completion_ids, guide=BaseGuide(0.7)
        )
    kl = policy.divergence(batch, found, settings).kl
    assert kl == pytest.approx(expected.tolist(), rel=1e-5) and min(kl) > 0.01


def test_the_base_of_a_steered_policy_is_not_steered(folder: str) -> None:
    policy, plain = steered(folder), completions(load(PolicySpec(), base=base()))
    settings = policy.with_defaults(SETTINGS)
    batch = policy.encode(PromptRows(PROMPTS), settings)
    with policy.policy_context():
        assert policy.sample_base(batch, settings).completion_ids == plain


def test_it_combines_with_principles_and_best_of_n(folder: str) -> None:
    given = {"steering": folder, "principles": "frugalign.sandbox:PRINCIPLES"}
    policy = load(PolicySpec.from_dict(given), base=base())
    settings = policy.with_defaults(SETTINGS)
    batch = policy.encode(PromptRows(PROMPTS), settings)
    assert policy.kind == "principles+steering" and batch.ids != batch.base_ids
    assert policy.divergence(batch, policy.sample(batch, settings), settings).kl is not None
    best = {"steering": folder, "best_of_n": 2, "selection_reward": f"{__name__}:shortness"}
    assert completions(load(PolicySpec.from_dict(best), base=base())) != completions(steered(folder))


def shortness(completions: list[str], **_: Any) -> list[float]:
    return [-float(len(text)) for text in completions]


def test_saved_and_loaded_it_is_the_same(folder: str, tmp_path: Path) -> None:
    network = load_steering(folder)
    assert (network.config.layer, network.config.strength) == (1, 2.0)
    network.save_pretrained(tmp_path)
    again = load_steering(tmp_path)
    assert (
        torch.equal(again.vector, network.vector)
        and again.config.to_dict().items() >= {"layer": 1, "strength": 2.0}.items()
    )
    assert torch.equal(SteeringModel.from_pretrained(tmp_path).vector, network.vector)
    assert completions(steered(str(tmp_path))) == completions(steered(folder))


@pytest.mark.parametrize(("name", "value"), [("layer", 2), ("strength", 5.0), ("width", 8)])
def test_a_changed_file_is_refused(folder: str, tmp_path: Path, name: str, value: Any) -> None:
    load_steering(folder).save_pretrained(tmp_path)
    content = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(content | {name: value}))
    with pytest.raises(FrugalignError, match=r"steering vector|do not fit"):
        load_steering(tmp_path)


def test_a_vector_of_another_base_is_refused(tmp_path: Path, folder: str) -> None:
    network = load_steering(folder)
    network.config.base = network.config.base | {"weights": "another", "exact": "another"}
    network.save_pretrained(tmp_path)
    with pytest.raises(FrugalignError, match=r"The steering vector in .* they differ in weights"):
        steered(str(tmp_path))


@pytest.mark.parametrize("layer", [0, 3, 9, -1])
def test_a_layer_that_the_model_does_not_have_is_named(layer: int) -> None:
    with pytest.raises(FrugalignError, match=rf"no layer {layer} to steer: layers go from 1 to 2"):
        steered_block(build("llama"), layer)
