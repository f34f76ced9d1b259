"""The representation reward: the same score however it is asked, one model in memory, and files that are not what they say."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import frugalign.sandbox as sandbox
from frugalign.base.errors import FrugalignError
from frugalign.data.templating import AUTO, Rendering
from frugalign.decoding import SamplingParams, generate
from frugalign.decoding.loop import LoopOptions
from frugalign.engines.fingerprints import fingerprint
from frugalign.engines.loading import LoadedModel, load_model
from frugalign.engines.transformers import TransformersEngine
from frugalign.rewards import CompletionBatch, StateReward, load_reward, load_rewards, score
from frugalign.rewards.representation.network import (
    RepresentationConfig,
    RepresentationModel,
    RepresentationReward,
    share_base,
    state_fingerprint,
)

PROMPTS = ["A balm for my horse.", "A poison, keeper.", "Quick, a draught that cures a fever, if you please."]
ANSWERS = ["Here is the balm, friend.", "No.", "Here."]


@pytest.fixture(scope="module")
def base() -> LoadedModel:
    return load_model(sandbox.model)


@pytest.fixture(scope="module")
def folder(base: LoadedModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random probes on layers 2 and 5 of the sandbox's model."""
    config = RepresentationConfig(width=base.model.config.hidden_size, layers=[2, 5], mu=0.3, scale=0.7)
    config.base = fingerprint(base.model, base.tokenizer, name=sandbox.model).to_dict()
    probes = RepresentationModel(config)
    torch.manual_seed(0)
    for parameter in probes.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    path = tmp_path_factory.mktemp("rewards") / "probes"
    probes.save_pretrained(path)
    return path


def test_it_is_a_reward_and_a_state_reward_named_on_a_command_line(folder: Path) -> None:
    named = load_reward(f"safety={folder}")
    assert named.name == "safety" and isinstance(named.function, RepresentationReward)
    assert isinstance(named.function, StateReward)
    assert load_reward(str(folder)).name == "probes"


def test_scores_depend_on_nothing_but_prompt_and_answer(folder: Path, base: LoadedModel) -> None:
    """Alone, together, in another order, as messages: to 1e-4. Another answer has another score."""
    reward = RepresentationReward.from_pretrained(folder, base)
    together = torch.tensor(reward(prompts=PROMPTS, completions=ANSWERS))
    alone = torch.tensor([reward(prompts=[p], completions=[a])[0] for p, a in zip(PROMPTS, ANSWERS, strict=True)])
    torch.testing.assert_close(together, alone, atol=1e-4, rtol=0)
    turned = torch.tensor(reward(prompts=PROMPTS[::-1] * 5, completions=ANSWERS[::-1] * 5))
    torch.testing.assert_close(turned[:3].flip(0), together, atol=1e-4, rtol=0)
    messages = reward(
        prompts=[[{"role": "user", "content": prompt}] for prompt in PROMPTS],
        completions=[[{"role": "assistant", "content": answer}] for answer in ANSWERS],
    )
    torch.testing.assert_close(torch.tensor(messages), together, atol=1e-4, rtol=0)
    assert abs(reward(prompts=PROMPTS[:1], completions=["No."])[0] - float(together[0])) > 1e-2


def test_states_of_generation_and_a_pass_of_its_own_agree(folder: Path, base: LoadedModel) -> None:
    """Some completions end, some are cut; what generation hands over scores as the tokens do, and no text is read again."""
    reward = RepresentationReward.from_pretrained(folder, base)
    prompts = [prompt for prompt in PROMPTS for _ in range(6)]
    from frugalign.data import encode_prompts

    ids = encode_prompts(prompts, base.tokenizer, max_new_tokens=18).ids
    for batch_size in (18, 5):
        found = generate(
            TransformersEngine(base.model, base.tokenizer),
            ids,
            SamplingParams(18),
            options=LoopOptions(batch_size=batch_size, state_layers=[1, 2, 5]),
        )
        assert found.states is not None and found.states.shape[:2] == (18, 3)
        assert 0 < sum(found.ended) < 18
        texts = base.tokenizer.batch_decode(found.completion_ids, skip_special_tokens=True)
        own = reward(prompts=prompts, completions=texts, completion_ids=found.completion_ids)
        handed = score(
            load_rewards([reward]),
            CompletionBatch(prompts, texts, found.completion_ids, states=found.states, state_layers=[1, 2, 5]),
        ).total
        torch.testing.assert_close(torch.tensor(handed), torch.tensor(own), atol=1e-4, rtol=0)


@pytest.mark.parametrize("said", ["Here is the balm.", "No!", "A poison? No. A fever?"])
def test_every_path_reads_a_cut_answer_at_its_last_sentence_end(folder: Path, base: LoadedModel, said: str) -> None:
    """As text, as messages, by its tokens, and with the end token or without: what follows the sentence changes nothing."""
    reward, tokenizer = RepresentationReward.from_pretrained(folder, base), base.tokenizer
    (whole,) = reward(prompts=PROMPTS[:1], completions=[said])
    for cut in (said, f"{said} here", f"{said} here is the"):
        ids = tokenizer(cut, add_special_tokens=False)["input_ids"]
        text = tokenizer.decode(ids)
        found = [
            *reward(prompts=PROMPTS[:1], completions=[text]),
            *reward(prompts=PROMPTS[:1], completions=[[{"role": "assistant", "content": text}]]),
            *reward(prompts=PROMPTS[:1], completions=[text], completion_ids=[ids]),
            *reward(prompts=PROMPTS[:1], completions=[text], completion_ids=[[*ids, tokenizer.eos_token_id]]),
        ]
        assert found == pytest.approx([whole] * 4, abs=1e-4)


def test_a_completion_that_was_cut_in_its_first_sentence_is_judged_where_it_was_cut(
    folder: Path, base: LoadedModel
) -> None:
    """Its tokens say so; tokens of another tokenizer are not believed."""
    reward = RepresentationReward.from_pretrained(folder, base)
    cut = base.tokenizer("here is", add_special_tokens=False)["input_ids"]
    whole = reward(prompts=PROMPTS[:1], completions=["here is"])
    assert abs(reward(prompts=PROMPTS[:1], completions=["here is"], completion_ids=[cut])[0] - whole[0]) > 1e-3
    assert reward(prompts=PROMPTS[:1], completions=["here is"], completion_ids=[[4, 5, 6]]) == whole


def test_token_ids_are_believed_row_by_row(folder: Path, base: LoadedModel) -> None:
    """Rows whose ids say something else do not change the others, whatever their order."""
    reward = RepresentationReward.from_pretrained(folder, base)
    cut = base.tokenizer("here is", add_special_tokens=False)["input_ids"]
    plain = reward(prompts=PROMPTS[:1], completions=["here is"])[0]
    ended = reward(prompts=PROMPTS[:1], completions=["here is"], completion_ids=[cut])[0]
    prompts, texts = PROMPTS[:1] * 4, ["here is"] * 4
    found = reward(prompts=prompts, completions=texts, completion_ids=[cut, [4, 5, 6], [], cut])
    torch.testing.assert_close(torch.tensor(found), torch.tensor([ended, plain, plain, ended]), atol=1e-4, rtol=0)
    messages = [[{"role": "assistant", "content": text}] for text in texts]
    found = reward(prompts=prompts, completions=messages, completion_ids=[[], cut, cut, [4, 5, 6]])
    torch.testing.assert_close(torch.tensor(found), torch.tensor([plain, ended, ended, plain]), atol=1e-4, rtol=0)
    assert reward(prompts=[], completions=[], completion_ids=[]) == []


def test_a_reward_of_the_hub_is_recognised_by_its_config(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its files are fetched by name, the config first."""
    fetched: list[str] = []

    def fetch(name: str, *files: str, allow_patterns: Any = ()) -> str:
        fetched.extend([*files, *allow_patterns])
        return str(folder / files[0] if files else folder)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", fetch)
    monkeypatch.setattr("huggingface_hub.snapshot_download", fetch)
    found = load_reward("someone/probes")
    assert isinstance(found.function, RepresentationReward) and found.name == "probes"
    assert fetched == ["config.json", "config.json", "model.safetensors"]


def test_one_model_in_memory(folder: Path, base: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """A trainer's own model is used where it is the one; nothing is loaded. Another model is left alone, and loads its own."""
    rewards: list[Any] = [RepresentationReward.from_pretrained(folder), len]
    own = state_fingerprint(fingerprint(base.model, base.tokenizer).to_dict())
    assert share_base(rewards, base, "another", AUTO) == []
    monkeypatch.setattr(
        "frugalign.rewards.representation.network.load_stored_base", lambda *_, **__: pytest.fail("loaded again")
    )
    for other, words in (
        (Rendering("raw"), "prompt_format auto, not raw"),
        (Rendering("chat", {"a": 1}), "None, not {'a': 1}"),
    ):
        with pytest.raises(FrugalignError, match=f"was fitted with .*{words}"):
            share_base(rewards, base, own, other)
    assert share_base(rewards, base, own, Rendering("chat")) == [2, 5] and rewards[0].base is base
    assert len(rewards[0](prompts=PROMPTS, completions=ANSWERS)) == 3


def test_another_base_and_damaged_files(folder: Path, base: LoadedModel, tmp_path: Path) -> None:
    other = load_model(sandbox.model)
    with torch.no_grad():
        next(other.model.parameters()).mul_(2)
    with pytest.raises(FrugalignError, match="was trained on"):
        RepresentationReward.from_pretrained(folder, other)
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    weights = load_file(tmp_path / "model.safetensors")
    weights["bias"] += 1
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(FrugalignError, match="has been changed"):
        load_reward(str(tmp_path))
    (tmp_path / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:-8])
    with pytest.raises(FrugalignError, match="truncated"):
        load_reward(str(tmp_path))
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(FrugalignError, match="does not exist"):
        load_reward(str(tmp_path))
