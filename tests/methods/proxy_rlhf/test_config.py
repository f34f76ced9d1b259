"""`ProxyConfig`: contradictions in one sentence, defaults that follow from others, and the way to YAML and back."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from frugalign.base.errors import FrugalignError
from frugalign.cli.method import command_of
from frugalign.cli.parser import parse
from frugalign.methods.proxy_rlhf import ProxyConfig
from frugalign.methods.proxy_rlhf.config import default_budget
from frugalign.proxy.network import ProxyModelConfig

COMMAND = command_of("proxy")
SMALL = ProxyModelConfig(hidden=16, width=64)


def config(tmp_path: Path, **options: Any) -> ProxyConfig:
    return ProxyConfig(output_dir=str(tmp_path / "run"), use_cpu=True, **options)


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"temperature": 0.0}, "temperature"),
        ({"p_t": 1.0}, "p_t"),
        ({"p_t": -0.1}, "p_t"),
        ({"max_new_tokens": 0}, "max_new_tokens"),
        ({"beta": -1.0}, "beta"),
        ({"beta": float("inf")}, "beta"),
        ({"target_kl": 0.0}, "target_kl"),
        ({"target_kl": 5.0, "beta": 0.0}, "target_kl"),
        ({"num_generations": 1}, "num_generations"),
        ({"per_device_train_batch_size": 12, "num_generations": 8}, "per_device_train_batch_size"),
        ({"gradient_accumulation_steps": 2}, "gradient_accumulation_steps"),
        ({"num_mini_batches": 0}, "num_mini_batches"),
        ({"num_iterations": 0}, "num_iterations"),
        ({"per_device_train_batch_size": 24, "num_generations": 8, "num_mini_batches": 2}, "num_mini_batches"),
    ],
)
def test_a_contradiction_is_one_sentence(options: dict[str, Any], word: str, tmp_path: Path) -> None:
    with pytest.raises(FrugalignError) as raised:
        config(tmp_path, **options)
    sentence = str(raised.value)
    assert word in sentence and sentence.endswith(".") and "\n" not in sentence


def test_steps_and_prompts_of_a_rollout(tmp_path: Path) -> None:
    """64 completions, 8 a prompt: 8 prompts; 3 passes of 4 minibatches: 12 steps."""
    found = config(tmp_path, per_device_train_batch_size=64, num_generations=8, num_iterations=3, num_mini_batches=4)
    assert (found.prompts_per_device, found.steps_per_rollout) == (8, 12)


def test_defaults_that_follow_from_others(tmp_path: Path) -> None:
    """The cap is 256, with lookahead 8; a value head only with GAE; `dim` is `hidden` unless told."""
    plain = config(tmp_path, hidden=7).network()
    assert (plain["max_candidates"], plain["value_head"], plain["dim"]) == (256, False, 7)
    other = config(
        tmp_path, candidate_features="lookahead", advantage="gae", objective="sequential", initial_bias=0.5, dim=3
    ).network()
    assert (other["max_candidates"], other["value_head"], other["initial_bias"], other["dim"]) == (8, True, 0.5, 3)
    assert config(tmp_path, max_candidates=5).network()["max_candidates"] == 5


@pytest.mark.parametrize(
    ("parameters", "budget", "completions", "rollouts"),
    [
        (260_032, 974_655, 128, 59),  # 1e13 / 10.26 million, in rollouts of 128·128 tokens
        (3_000_000, 769_230, 128, 46),
        (135_000_000, 68_965, 16, 33),  # two prompts of eight
        (7_000_000_000, 50_000, 16, 24),
    ],
)
def test_a_run_is_as_long_as_its_base_allows(
    parameters: int, budget: int, completions: int, rollouts: int, tmp_path: Path
) -> None:
    found = config(tmp_path)
    found.size_to(parameters, SMALL)
    assert default_budget(parameters) == budget
    assert (found.per_device_train_batch_size, found.max_steps) == (completions, rollouts * 16)


def test_what_is_given_is_not_sized_by_the_base(tmp_path: Path) -> None:
    """Completions, steps, epochs; a budget is an upper bound of given steps, and alone it sets them."""

    def sized(**options: Any) -> tuple[int, int]:
        found = config(tmp_path, max_new_tokens=10, **options)
        found.size_to(135_000_000, SMALL)
        return found.per_device_train_batch_size, found.max_steps

    assert sized(per_device_train_batch_size=32, budget_tokens=3_200) == (32, 10 * 16)
    assert sized(per_device_train_batch_size=32, budget_tokens=3_200, max_steps=8) == (32, 8)
    assert sized(per_device_train_batch_size=32, budget_tokens=3_200, max_steps=800) == (32, 10 * 16)
    assert sized(per_device_train_batch_size=32, max_steps=800) == (32, 800)
    assert sized(per_device_train_batch_size=32, num_train_epochs=2) == (32, -1), "of the epochs, by round_steps"
    assert sized(budget_tokens=1) == (16, 16), "one rollout at least"
    assert sized(num_generations=6, num_mini_batches=1, budget_tokens=10**9)[0] == 126, "a multiple of the group"


@pytest.mark.parametrize(
    ("network", "rate"),
    [
        ({"hidden": 16, "width": 64}, 0.01),
        ({"hidden": 32, "width": 64}, 0.005),
        ({"hidden": 16, "width": 256}, 0.005),
        ({"hidden": 256, "width": 576}, 1.28 / 256 / 24),
        ({"hidden": 1, "width": 8}, 0.01),
        ({"hidden": 256, "width": 576, "candidate_features": "token_bias"}, 0.1),
    ],
)
def test_the_learning_rate_falls_as_the_proxy_grows(network: dict[str, Any], rate: float, tmp_path: Path) -> None:
    found, given = config(tmp_path), config(tmp_path, learning_rate=0.3)
    for each in (found, given):
        each.size_to(1_000_000, ProxyModelConfig(**network))
    assert found.learning_rate == pytest.approx(rate) and given.learning_rate == 0.3
    assert found.fixed_settings()["learning_rate"] == found.learning_rate, "a resumed run must have the same one"


def test_sizes_survive_the_way_to_yaml_and_back(tmp_path: Path) -> None:
    found = config(tmp_path, budget_tokens=100_000)
    found.size_to(3_000_000, SMALL)
    again = ProxyConfig(**found.resolved() | {"use_cpu": True})
    again.size_to(3_000_000, SMALL)
    for name in ("per_device_train_batch_size", "max_steps", "learning_rate"):
        assert getattr(again, name) == getattr(found, name), name


def test_eval_steps_switches_evaluation_on(tmp_path: Path) -> None:
    assert config(tmp_path, eval_steps=4).eval_strategy == "steps"
    assert config(tmp_path).eval_strategy == "no"


@pytest.mark.parametrize(
    "options",
    [
        {"bf16": True},
        {"fp16": True},
        {"dataloader_num_workers": 2},
        {"data_seed": 1},
        {"per_device_eval_batch_size": 4},
    ],
)
def test_what_a_proxy_does_not_use_is_refused(tmp_path: Path, options: dict[str, Any]) -> None:
    before = os.environ.get("ACCELERATE_MIXED_PRECISION")
    with pytest.raises(FrugalignError, match=f"{next(iter(options))} is not carried over"):
        config(tmp_path, **options)
    assert os.environ.get("ACCELERATE_MIXED_PRECISION") == before, "a refused config sets nothing up"
    assert not config(tmp_path).remove_unused_columns


def test_the_resolved_options_reload_from_yaml(tmp_path: Path) -> None:
    """Every option, none of them at its default, through `config.yaml` and `--config`, also `resume_from_checkpoint: true`."""
    first = config(
        tmp_path,
        model_name_or_path="base",
        dataset_name="prompts",
        reward=["frugalign.sandbox:gold", "frugalign.sandbox:learned"],
        reward_weights=[0.25, 1e-3],
        objective="sequential_integrated",
        candidate_features="token_bias",
        learning_rate=3e-3,
        p_t=1e-4,
        target_kl=7.5,
        eval_steps=6,
        save_total_limit=None,
        lr_scheduler_type="cosine",
        log_completions=True,
        report_to="none",
        resume_from_checkpoint="true",
        seed=5,
    )
    options = first.resolved()
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(options, sort_keys=False))
    again: ProxyConfig = parse(COMMAND, ["--config", str(file)])
    assert again.resolved() == options
    assert again.reward_weights == [0.25, 1e-3] and again.learning_rate == 3e-3 and again.save_total_limit is None
    file.write_text(yaml.safe_dump(options | {"resume_from_checkpoint": True}))
    assert parse(COMMAND, ["--config", str(file)]).resume_from_checkpoint == "true"
    overridden: ProxyConfig = parse(COMMAND, ["--config", str(file), "--seed", "9"])
    assert overridden.seed == 9 and overridden.p_t == 1e-4


@pytest.mark.parametrize(("name", "value"), [("objective", "margnal"), ("advantage", "GAE"), ("prompt_format", "xml")])
def test_a_word_that_is_none_of_the_choices(name: str, value: str, tmp_path: Path) -> None:
    with pytest.raises(FrugalignError, match=f"{name} is '{value}'; it must be one of"):
        ProxyConfig(output_dir=str(tmp_path), use_cpu=True, **{name: value})
