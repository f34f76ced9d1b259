"""A policy from its specification: what composes, on which noise, and how far it is from its base."""

import copy
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from tests.evaluation.evaluated import evaluated
from tests.two_layers import two_layers

from frugalign.base.errors import FrugalignError
from frugalign.decoding import Reference, SamplingParams, generate, row_keys, sequence_kl
from frugalign.decoding.chooser import BaseGuide
from frugalign.engines.fingerprints import fingerprint
from frugalign.engines.loading import LoadedModel, load_model
from frugalign.engines.transformers import TransformersEngine, embedding_rows
from frugalign.policies import Policy, PolicySpec, SamplingSettings, load
from frugalign.policies.principles import load_principles, under_principles
from frugalign.policies.prompt_rows import PromptRows
from frugalign.proxy.guide import ProxyGuide
from frugalign.proxy.network import load_proxy, new_proxy

PROMPTS = ["i want a balm for my knee", "sell me a curse", "a tea for my cough please"]
SETTINGS = SamplingSettings(max_new_tokens=8)
TOLD = "frugalign.sandbox:PRINCIPLES"


def shortness(completions: list[str], **_: Any) -> list[float]:
    return [-float(len(text)) for text in completions]


@cache
def base() -> LoadedModel:
    return load_model(two_layers())


@pytest.fixture(scope="module")
def proxies(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Two proxies of the base that want different things."""
    folders = []
    for seed in (0, 1):
        proxy = new_proxy(base().model, {"p_t": 0.02, "max_new_tokens": 8}, seed=seed)
        torch.nn.init.normal_(proxy.query_out.weight, std=2.0, generator=torch.Generator().manual_seed(seed))
        proxy.config.base = fingerprint(base().model, base().tokenizer).to_dict()
        folders.append(str(tmp_path_factory.mktemp("proxy")))
        proxy.save_pretrained(folders[-1])
    return folders


def completions(policy: Policy) -> list[list[int]]:
    settings = policy.with_defaults(SETTINGS)
    return policy.sample(policy.encode(PromptRows(PROMPTS), settings), settings).completion_ids


def test_several_proxies_compose_at_their_strengths(proxies: list[str]) -> None:
    """`log a = Σ λ_i log a_i`: the completions are those of a guide built from both by hand, and of neither alone."""
    policy = load(PolicySpec.from_dict({"proxy": [f"{proxies[0]}@0.5", proxies[1]]}), base=base())
    networks = [load_proxy(folder) for folder in proxies]
    guide = ProxyGuide.build(networks, embedding_rows(base().model), [0.5, 1.0])
    ids = [list(base().tokenizer(prompt)["input_ids"]) for prompt in PROMPTS]
    by_hand = generate(
        TransformersEngine(base().model, base().tokenizer),
        ids,
        SamplingParams(8),
        keys=row_keys(0, 0, range(3), [0] * 3),
        guide=guide,
    )
    raw = SamplingSettings(max_new_tokens=8, prompt_format="raw")
    batch = policy.encode(PromptRows(PROMPTS), raw)
    found = policy.sample(batch, policy.with_defaults(raw)).completion_ids
    assert found == by_hand.completion_ids
    alone = [load(PolicySpec.from_dict({"proxy": folder}), base=base()) for folder in proxies]
    assert completions(policy) not in [completions(each) for each in alone]
    assert policy.trainable_parameters == sum(network.num_parameters() for network in networks)


@pytest.mark.parametrize(
    ("own", "given", "expected"),
    [
        ({"do_sample": True, "temperature": 0.6}, None, 0.6),
        ({"do_sample": True, "temperature": 0.6}, 0.9, 0.9),
        ({"do_sample": False, "temperature": 0.6}, None, 1.0),
        ({"do_sample": True, "temperature": None}, None, 1.0),
        ({"do_sample": None, "temperature": 0.6}, None, 1.0),
        ({"do_sample": True, "temperature": 0.0}, None, 1.0),
    ],
)
def test_a_base_samples_at_its_own_temperature_unless_told(
    own: dict[str, Any], given: float | None, expected: float, proxies: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What its generation config samples at. A proxy keeps the temperature that it was trained at."""
    for name, value in own.items():
        monkeypatch.setattr(base().model.generation_config, name, value)
    policy = load(PolicySpec(), base=base())
    assert policy.with_defaults(replace(SETTINGS, temperature=given)).temperature == expected
    guided = load(PolicySpec.from_dict({"proxy": proxies[:1]}), base=base())
    assert guided.with_defaults(replace(SETTINGS, temperature=None)).temperature == 1.0


def test_a_proxys_template_arguments_are_the_default(tmp_path: Path) -> None:
    """They are stored with it, reach the encoding, and can be replaced."""
    proxy = new_proxy(base().model, {"p_t": 0.02, "chat_template_kwargs": {"loud": True}}, seed=0)
    proxy.config.base = fingerprint(base().model, base().tokenizer).to_dict()
    proxy.save_pretrained(tmp_path)
    tokenizer = copy.deepcopy(base().tokenizer)
    tokenizer.chat_template = (
        "{% for m in messages %}<user>{{ m.content }}{% endfor %}{% if loud %}!{% endif %}<assistant>"
    )
    policy = load(PolicySpec.from_dict({"proxy": [str(tmp_path)]}), base=base())
    policy = replace(policy, base=replace(base(), tokenizer=tokenizer))
    said = [
        tokenizer.decode(policy.encode(PromptRows(["sell me a tea"]), policy.with_defaults(settings)).ids[0])
        for settings in (SETTINGS, replace(SETTINGS, chat_template_kwargs={"loud": False}))
    ]
    assert ["!" in text for text in said] == [True, False]
    with pytest.raises(FrugalignError, match="sets aloud, which the chat template does not read"):
        policy.encode(PromptRows(PROMPTS), policy.with_defaults(replace(SETTINGS, chat_template_kwargs={"aloud": 1})))


def test_principles_stand_before_the_policys_prompts_alone() -> None:
    policy = load(PolicySpec(principles=TOLD), base=base())
    batch = policy.encode(PromptRows(PROMPTS), policy.with_defaults(SETTINGS))
    plain = load(PolicySpec(), base=base()).encode(PromptRows(PROMPTS), policy.with_defaults(SETTINGS))
    assert batch.rows.prompts == PROMPTS and batch.base_ids == plain.ids
    assert all(len(told) > len(asked) for told, asked in zip(batch.ids, batch.base_ids, strict=True))


def test_the_kl_of_principles_is_that_of_one_model_on_two_prompts() -> None:
    policy = load(PolicySpec(principles=TOLD), base=base())
    settings = policy.with_defaults(SETTINGS)
    batch = policy.encode(PromptRows(PROMPTS), settings)
    sampled = policy.sample(batch, settings)
    found = policy.divergence(batch, sampled, settings)
    expected = sequence_kl(
        base().model,
        Reference(base().model, prompt_ids=batch.base_ids),
        batch.ids,
        sampled.completion_ids,
        guide=BaseGuide(1.0),
    )
    assert found.kl == expected.tolist() and min(expected) > 0 and found.parts is None


def test_principles_compose_with_a_proxy(proxies: list[str]) -> None:
    """The proxy guides what the base says under the principles. The KL is to what the base says without them."""
    policy = load(PolicySpec.from_dict({"proxy": proxies[0], "principles": TOLD}), base=base())
    told = under_principles(load_principles(TOLD), PROMPTS, base().tokenizer)
    guided = load(PolicySpec.from_dict({"proxy": proxies[0]}), base=base())
    settings = guided.with_defaults(SETTINGS)
    assert completions(policy) == guided.sample(guided.encode(PromptRows(told), settings), settings).completion_ids
    rows = Dataset.from_dict({"prompt": PROMPTS})
    metrics = evaluated(base(), rows, shortness, proxy=proxies[0], principles=TOLD)
    assert metrics["kl_per_sequence"]["mean"] > 0 and metrics["settings"]["policy"] == "principles+proxy"


def test_the_kl_of_a_proxy_is_the_same_in_a_pass_as_while_it_samples(proxies: list[str]) -> None:
    """A pass is what measures it under principles, where sampling compares the proxy with a base that reads them too."""
    policy = load(PolicySpec.from_dict({"proxy": proxies[0]}), base=base())
    settings = policy.with_defaults(SETTINGS)
    batch = policy.encode(PromptRows(PROMPTS), settings)
    sampled = policy.sample(batch, settings)
    assert policy.guide is not None
    passed = sequence_kl(base().model, Reference(base().model), batch.ids, sampled.completion_ids, guide=policy.guide)
    assert policy.divergence(batch, sampled, settings).kl == pytest.approx(passed.tolist(), rel=1e-4)


def test_best_of_n_draws_from_the_proxy(proxies: list[str]) -> None:
    """Best of one is the proxy itself; best of four by shortness is no longer; its KL to the base is not known."""
    spec = {"proxy": proxies[0], "selection_reward": [shortness]}
    alone = completions(load(PolicySpec.from_dict({"proxy": proxies[0]}), base=base()))
    assert completions(load(PolicySpec.from_dict(spec | {"best_of_n": 1}), base=base())) == alone
    rows = Dataset.from_dict({"prompt": PROMPTS})
    metrics = evaluated(base(), rows, shortness, best_of_n=4, **spec)
    single = evaluated(base(), rows, shortness, proxy=proxies[0])
    assert metrics["reward"]["mean"] >= single["reward"]["mean"] and metrics["kl_per_sequence"] is None
    assert metrics["settings"]["kl_is_bound"] is False


def test_a_base_is_needed() -> None:
    with pytest.raises(FrugalignError, match="model_name_or_path is missing"):
        load(PolicySpec())


def test_proxies_of_different_temperatures_do_not_compose(tmp_path: Path, proxies: list[str]) -> None:
    other = new_proxy(base().model, {"temperature": 0.5, "max_new_tokens": 8})
    other.config.base = fingerprint(base().model, base().tokenizer).to_dict()
    other.save_pretrained(tmp_path)
    with pytest.raises(FrugalignError, match="do not compose: temperature"):
        load(PolicySpec.from_dict({"proxy": [proxies[0], str(tmp_path)]}), base=base())
