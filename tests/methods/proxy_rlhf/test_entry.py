"""A study's line: how a budget sizes its rollouts."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from frugalign.base.ledger import Ledger
from frugalign.methods.budget import Budget
from frugalign.methods.proxy_rlhf import entry


@pytest.mark.parametrize(
    ("budget", "setting", "completions", "rollouts"),
    [
        # 1,233 responses in thirty rollouts; 128 at most.
        (Budget(generated_tokens=74_000, mean_length=60), {}, 32, 38),
        (Budget(generated_tokens=983_040, mean_length=96), {}, 128, 80),
        (Budget(generated_tokens=983_040, mean_length=96), {"per_device_train_batch_size": 64}, 64, 160),
        # Steps that feed no model are no cost.
        (Budget(generated_tokens=160_000, optimizer_steps=160, mean_length=20), {}, 128, 62),
        # The base decides, as for the command.
        (Budget(optimizer_steps=32), {}, -1, 2),
        (Budget(), {}, -1, None),
    ],
)
def test_a_budget_sizes_the_rollouts(
    budget: Budget,
    setting: dict[str, Any],
    completions: int,
    rollouts: int | None,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    given: dict[str, Any] = {}

    def train(config: SimpleNamespace, callbacks: list[Any]) -> SimpleNamespace:
        given.update(vars(config))
        return SimpleNamespace(ledger=Ledger())

    monkeypatch.setattr("frugalign.methods.proxy_rlhf.run.train_proxy", train)
    monkeypatch.setattr("frugalign.methods.proxy_rlhf.config.ProxyConfig", SimpleNamespace)
    job = SimpleNamespace(
        setting=setting, budget=budget, run_folder=tmp_path, dataset="data", common=dict, callbacks=list,
        shared=lambda *names: {}, spend=lambda ledger: None,
    )  # fmt: skip
    entry.run(job)  # type: ignore[arg-type]
    assert given["per_device_train_batch_size"] == completions
    assert given.get("max_steps") == (None if rollouts is None else rollouts * 16)
