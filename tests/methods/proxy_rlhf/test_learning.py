"""Learning on the sandbox: a real gain in the exact reward, against a threshold that every control fails."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

import frugalign.sandbox as sandbox
from frugalign.engines.loading import LoadedModel, load_model
from frugalign.methods.proxy_rlhf import ProxyConfig, ProxyTrainer
from frugalign.rewards import NamedReward

HELD_OUT = 200
THRESHOLD = 0.4
"""Mean gold of the untrained proxy on the held-out prompts is 0.2; the scale of gold is −1 to 1.5."""


@pytest.fixture(scope="module")
def base() -> LoadedModel:
    return load_model(sandbox.model)


def gold(**call: Any) -> list[float | None]:
    values: list[float | None] = sandbox.gold(**call)
    return values


def shuffled(completions: list[Any], **call: Any) -> list[float | None]:
    """The exact rewards, dealt to the wrong completions."""
    values = gold(completions=completions, **call)
    random.Random(str(completions)).shuffle(values)
    return values


def held_out_gold(base: LoadedModel, folder: Path, reward: Any, **options: Any) -> tuple[float, float]:
    """(mean gold, KL) on prompts that were not trained on, after 40 steps of 64 completions."""
    lines = (Path(sandbox.prompts) / "train.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    given = {
        "max_steps": 40,
        "num_iterations": 1,
        "per_device_train_batch_size": 64,
        "max_new_tokens": 32,
        "p_t": 0.01,
        "beta": 0.1,
        "learning_rate": 3e-3,
        "disable_tqdm": True,
        "use_cpu": True,
    }
    trainer = ProxyTrainer(
        base.model,
        reward,
        ProxyConfig(output_dir=str(folder), **(given | options)),
        Dataset.from_list(rows[HELD_OUT:]),
        eval_dataset=Dataset.from_list(rows[:HELD_OUT]),
        processing_class=base.tokenizer,
    )
    trainer.train()
    trainer.rewards = [NamedReward("gold", gold)]
    metrics = trainer.evaluate()
    return metrics["eval_reward"], metrics["eval_kl_per_sequence"]


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["marginal", "sequential_integrated"])
def test_a_trained_proxy_passes_the_threshold(objective: str, base: LoadedModel, tmp_path: Path) -> None:
    """A gain of at least 0.2 for less than two nats a sequence. The paper's process, integrated, needs no more samples for it."""
    reward, kl = held_out_gold(base, tmp_path, gold, objective=objective)
    assert reward > THRESHOLD and 0.05 < kl < 2.0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("reward", "options"),
    [
        (gold, {"learning_rate": 0.0, "max_steps": 2}),
        (shuffled, {}),
        (gold, {"candidate_features": "token_bias", "learning_rate": 0.1}),
    ],
    ids=["untrained", "shuffled", "state-free"],
)
def test_the_controls_fail_it(reward: Any, options: dict[str, Any], base: LoadedModel, tmp_path: Path) -> None:
    """A proxy that saw nothing, one that saw rewards of other completions, and one bias per token at a rate of its own."""
    found, _ = held_out_gold(base, tmp_path, reward, **options)
    assert found < THRESHOLD
