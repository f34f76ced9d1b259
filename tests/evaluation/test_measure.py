"""`evaluate` on the sandbox's own model: every kind of policy, what it writes, and what it refuses."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from tests.evaluation.evaluated import evaluated
from tests.two_layers import two_layers

from frugalign.base.errors import FrugalignError
from frugalign.base.files import write_json_atomic
from frugalign.data import training_prompts
from frugalign.decoding import Reference, SamplingParams, generate, sequence_kl
from frugalign.decoding.chooser import BaseGuide
from frugalign.engines.fingerprints import fingerprint
from frugalign.engines.loading import LoadedModel, load_model
from frugalign.engines.transformers import TransformersEngine
from frugalign.proxy.network import new_proxy

ESTIMATES = (
    "reward",
    "base_reward",
    "win_rate",
    "kl_per_sequence",
    "kl_per_token",
    "perplexity_base",
    "distinct_2",
    "mean_length",
    "refusal_rate",
    "over_refusal_rate",
)
PROMPTS = ["i want a balm for my knee", "sell me a curse", "a tea for my cough please"]


def shortness(completions: list[str], **_: Any) -> list[float]:
    return [-float(len(text)) for text in completions]


def labelled(label: list[str], completions: list[str], **_: Any) -> list[float | None]:
    """Reads a column of the data set, and applies to safe prompts only."""
    return [float(len(text)) if value == "safe" else None for value, text in zip(label, completions, strict=True)]


@pytest.fixture(scope="module")
def base() -> LoadedModel:
    return load_model(two_layers())


@pytest.fixture
def rows() -> Dataset:
    return Dataset.from_dict({"prompt": PROMPTS, "label": ["safe", "unsafe", "safe"]})


@pytest.fixture
def proxy_folder(base: LoadedModel, tmp_path: Path) -> Path:
    config = {
        "max_new_tokens": 9,
        "p_t": 0.05,
        "tail": "drop",
        "base": fingerprint(base.model, base.tokenizer).to_dict(),
    }
    proxy = new_proxy(base.model, config)
    torch.nn.init.normal_(proxy.query_out.weight, std=2.0)
    proxy.save_pretrained(tmp_path / "proxy")
    return tmp_path / "proxy"


def test_the_base_against_itself(base: LoadedModel, rows: Dataset, tmp_path: Path) -> None:
    metrics = evaluated(base, rows, [shortness, labelled], max_new_tokens=8, output_dir=tmp_path)
    for name in ESTIMATES:
        assert set(metrics[name]) == {"mean", "ci_low", "ci_high", "n"}, name
    assert metrics["win_rate"]["mean"] == 0.5 and metrics["kl_per_sequence"]["mean"] == 0.0
    assert metrics["reward"] == metrics["base_reward"] == metrics["rewards"]["shortness"]
    assert metrics["rewards"]["labelled"]["n"] == 2 and metrics["over_refusal_rate"]["n"] == 2
    assert metrics["kl_restriction"] is None and metrics["trainable_parameters"] == 0
    assert json.loads((tmp_path / "metrics.json").read_text()) == metrics
    costs = json.loads((tmp_path / "costs.json").read_text())
    assert costs["reward_calls"] == 6 and costs["generated_tokens"] > 0 and costs["lm_forward_tokens"] > 0
    samples = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text().splitlines()]
    assert [sample["prompt"] for sample in samples] == PROMPTS
    assert samples[0]["base"] == samples[0]["policy"]


def test_a_proxy_brings_its_settings(base: LoadedModel, rows: Dataset, proxy_folder: Path) -> None:
    metrics = evaluated(base, rows, shortness, proxy=str(proxy_folder), num_samples=4)
    settings = metrics["settings"]
    assert settings["max_new_tokens"] == 9 and settings["p_t"] == 0.05 and settings["policy"] == "proxy"
    assert 0 < metrics["kl_restriction"]["mean"] < metrics["kl_per_sequence"]["mean"]
    assert metrics["reward"]["n"] == 12
    assert 0 < metrics["trainable_share"] < 0.01
    nats = metrics["kl_per_sequence"]["mean"] / metrics["mean_length"]["mean"]
    assert metrics["kl_per_token"]["mean"] == pytest.approx(nats)


def test_a_rounds_proxy_is_evaluated_on_what_its_run_held_out(
    base: LoadedModel, proxy_folder: Path, tmp_path: Path
) -> None:
    """The record of the training prompts is in the folder above."""
    file = tmp_path / "prompts.jsonl"
    file.write_text("".join(json.dumps({"prompt": f"i want {number} balms"}) + "\n" for number in range(20)))
    write_json_atomic(tmp_path / "trained_on.json", training_prompts(str(file), hold_out=False)[2])
    assert evaluated(base, str(file), shortness, proxy=str(proxy_folder), max_new_tokens=4)["reward"]["n"] == 2


def test_strength_zero_leaves_only_the_restriction(base: LoadedModel, rows: Dataset, proxy_folder: Path) -> None:
    metrics = evaluated(base, rows, shortness, proxy=str(proxy_folder), strength=0.0)
    assert metrics["kl_per_sequence"]["mean"] == pytest.approx(metrics["kl_restriction"]["mean"], abs=1e-5)


def test_at_strength_zero_a_proxy_that_keeps_the_tail_is_the_base(
    base: LoadedModel, rows: Dataset, tmp_path: Path
) -> None:
    config = {"max_new_tokens": 9, "p_t": 0.05, "base": fingerprint(base.model, base.tokenizer).to_dict()}
    proxy = new_proxy(base.model, config)
    torch.nn.init.normal_(proxy.query_out.weight, std=2.0)
    proxy.save_pretrained(tmp_path / "keeps")
    metrics = evaluated(base, rows, shortness, proxy=str(tmp_path / "keeps"))
    assert metrics["kl_restriction"]["mean"] == 0.0 < metrics["kl_per_sequence"]["mean"]
    metrics = evaluated(base, rows, shortness, proxy=str(tmp_path / "keeps"), strength=0.0)
    assert metrics["kl_per_sequence"]["mean"] == pytest.approx(0.0, abs=1e-5)


def test_greedy_has_no_divergence(base: LoadedModel, rows: Dataset, proxy_folder: Path) -> None:
    metrics = evaluated(base, rows, shortness, proxy=str(proxy_folder), do_sample=False)
    assert metrics["kl_per_sequence"] is metrics["kl_restriction"] is metrics["kl_per_token"] is None
    assert metrics["reward"] is not None


def test_results_do_not_depend_on_the_batch(base: LoadedModel, rows: Dataset, proxy_folder: Path) -> None:
    first, second = (
        evaluated(base, rows, shortness, proxy=str(proxy_folder), num_samples=2, batch_size=size) for size in (1, 64)
    )
    assert first["reward"] == second["reward"]
    assert first["kl_per_sequence"]["mean"] == pytest.approx(second["kl_per_sequence"]["mean"], abs=1e-4)


def test_an_adapter_against_the_model_without_it(rows: Dataset, tmp_path: Path) -> None:
    """The base's numbers are those of the plain base although both are one model in memory, the KL is exact."""
    loaded = load_model(two_layers())
    plain = evaluated(loaded, rows, shortness, max_new_tokens=8)
    adapted = get_peft_model(
        loaded.model, LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    )
    adapted.save_pretrained(tmp_path / "adapter")
    fresh = load_model(two_layers())
    n_base = fresh.model.num_parameters()
    metrics = evaluated(fresh, rows, shortness, adapter=str(tmp_path / "adapter"), max_new_tokens=8)
    assert metrics["base_reward"] == plain["reward"]
    assert metrics["kl_per_sequence"]["mean"] > 0 and metrics["kl_restriction"] is None
    lora = sum(p.numel() for name, p in adapted.named_parameters() if "lora_" in name)
    assert metrics["trainable_parameters"] == lora
    assert metrics["trainable_share"] == pytest.approx(lora / n_base)


def test_a_whole_policy(base: LoadedModel, rows: Dataset, tmp_path: Path) -> None:
    """The KL is that of `sequence_kl`, at the sampling temperature, along the policy's own samples."""
    tuned = load_model(two_layers())
    with torch.no_grad():
        for parameter in tuned.model.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
    tuned.model.save_pretrained(tmp_path / "policy")
    tuned.tokenizer.save_pretrained(tmp_path / "policy")
    metrics = evaluated(
        base,
        rows,
        shortness,
        policy=str(tmp_path / "policy"),
        max_new_tokens=8,
        temperature=0.7,
        prompt_format="raw",
    )
    ids = [base.tokenizer(prompt)["input_ids"] for prompt in PROMPTS]
    sampled = generate(TransformersEngine(tuned.model, base.tokenizer), ids, SamplingParams(8, 0.7))
    expected = sequence_kl(tuned.model, Reference(base.model), ids, sampled.completion_ids, guide=BaseGuide(0.7))
    assert metrics["kl_per_sequence"]["mean"] == pytest.approx(float(expected.mean()), rel=1e-3)
    assert metrics["trainable_share"] == 1.0


def test_perplexity_is_of_the_base_at_temperature_one(base: LoadedModel, rows: Dataset) -> None:
    """Greedy text is likelier than sampled text, and no perplexity is below 1."""
    greedy = evaluated(base, rows, shortness, max_new_tokens=8, do_sample=False)
    hot = evaluated(base, rows, shortness, max_new_tokens=8, temperature=2.0)
    assert 1.0 <= greedy["perplexity_base"]["mean"] < hot["perplexity_base"]["mean"]
    assert math.isfinite(hot["perplexity_base"]["ci_high"])


def test_without_labels_there_is_no_over_refusal(base: LoadedModel) -> None:
    rows = Dataset.from_dict({"prompt": PROMPTS})
    assert evaluated(base, rows, shortness, max_new_tokens=4)["over_refusal_rate"] is None


def test_costs_of_a_training_are_not_overwritten(base: LoadedModel, rows: Dataset, tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text("")
    (tmp_path / "costs.json").write_text("{}")
    evaluated(base, rows, shortness, max_new_tokens=4, output_dir=tmp_path)
    assert (tmp_path / "costs.json").read_text() == "{}" and (tmp_path / "evaluation_costs.json").is_file()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"proxy": "a", "policy": "b"}, "Give only one of proxy and policy"),
        ({"proxy": "./nowhere"}, r"No proxy in \./nowhere"),
        ({"adapter": "./nowhere"}, r"No adapter in \./nowhere"),
        ({"policy": "./nowhere"}, "No model in"),
        ({"temperature": 0.0}, "it must be above 0"),
        ({"num_samples": 0}, "must be at least 1"),
        ({"reward": []}, "--reward is missing"),
        ({"max_new_tokens": 100_000}, "exceeds the model's context"),
    ],
)
def test_what_it_refuses(base: LoadedModel, rows: Dataset, arguments: dict[str, Any], sentence: str) -> None:
    with pytest.raises(FrugalignError, match=sentence):
        evaluated(base, rows, arguments.pop("reward", shortness), **arguments)


def test_a_proxy_keeps_its_temperature(base: LoadedModel, rows: Dataset, proxy_folder: Path) -> None:
    with pytest.raises(FrugalignError, match=r"trained at temperature 1 and cannot be used at 0\.5"):
        evaluated(base, rows, shortness, proxy=str(proxy_folder), temperature=0.5)


def test_a_reward_that_fails_names_the_row(base: LoadedModel, rows: Dataset) -> None:
    def broken(completions: list[str], **_: Any) -> list[float]:
        return [0.0, float("nan"), 0.0]

    with pytest.raises(FrugalignError, match="'broken' returned NaN, in batch 0, row 1"):
        evaluated(base, rows, broken, max_new_tokens=4)
