"""A study's line of a proxy from stored data keeps to the budget."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from frugalign.base.ledger import Ledger
from frugalign.methods.budget import PAIRS_PER_STEP, Budget
from frugalign.methods.proxy_stored import entry, run
from frugalign.methods.proxy_stored.config import StoredProxyConfig


@pytest.fixture
def configs(monkeypatch: pytest.MonkeyPatch) -> list[StoredProxyConfig]:
    """The configs of the trainings that a test starts. None of them runs."""
    found: list[StoredProxyConfig] = []

    def train(config: StoredProxyConfig, callbacks: Any = ()) -> Any:
        found.append(config)
        return SimpleNamespace(ledger=Ledger())

    monkeypatch.setattr(run, "train_stored", train)
    return found


def job(budget: Budget, **setting: Any) -> Any:
    """A job whose pairs and prompts are named by the number that was asked for."""
    return SimpleNamespace(
        budget=budget,
        setting=dict(setting),
        pairs=lambda size: f"pairs-of-{size}",
        run_folder=Path("run"),
        common=lambda: {"output_dir": "run", "seed": 1, "model_name_or_path": "base", "max_new_tokens": 8},
        shared=lambda *names: {"principles": "principles.md"},
        some_prompts=lambda number: Path(f"{number}-prompts"),
        callbacks=list,
        spend=lambda ledger: None,
    )


@pytest.mark.parametrize(
    ("setting", "batch"), [({}, PAIRS_PER_STEP), ({"per_device_train_batch_size": 4}, 4)], ids=["default", "given"]
)
def test_steps_have_as_many_pairs_as_those_of_other_methods(
    configs: list[StoredProxyConfig], setting: dict[str, Any], batch: int
) -> None:
    assert entry.from_pairs(job(Budget(optimizer_steps=12), **setting)) == {"proxy": "run"}
    (config,) = configs
    assert (config.dataset_name, config.max_steps, config.per_device_train_batch_size) == ("pairs-of-4", 12, batch)
    assert config.test_fraction == 0


def test_with_a_budget_of_tokens_the_steps_are_the_proxys_own(configs: list[StoredProxyConfig]) -> None:
    """They feed nothing to the model: it has read the pairs, as many as the tokens gave."""
    budget = Budget(generated_tokens=1000, optimizer_steps=12, mean_length=20)
    entry.from_pairs(job(budget, sample=8, num_train_epochs=3))
    entry.distilled(job(budget))
    pairs, taught = configs
    assert (pairs.dataset_name, pairs.max_steps, pairs.num_train_epochs) == ("pairs-of-8", -1, 3)
    assert (taught.dataset_name, taught.max_steps) == ("50-prompts", -1)


@pytest.mark.parametrize(
    ("budget", "prompts"),
    [(Budget(), None), (Budget(generated_tokens=1000, mean_length=20), 50)],
    ids=["none", "tokens"],
)
def test_a_teacher_answers_as_many_prompts_as_the_tokens_allow(
    configs: list[StoredProxyConfig], budget: Budget, prompts: int | None
) -> None:
    entry.distilled(job(budget))
    (config,) = configs
    assert (config.dataset_name, config.principles) == (f"{prompts}-prompts", "principles.md")
    assert config.max_steps == -1
