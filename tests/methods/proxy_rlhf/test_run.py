"""`train_proxy` from Python: which prompts are trained on, which are watched, and what is written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.two_layers import two_layers
from transformers import TrainerCallback

from frugalign.base.errors import FrugalignError
from frugalign.methods.proxy_rlhf import ProxyConfig
from frugalign.methods.proxy_rlhf.run import train_proxy
from frugalign.proxy.network import load_proxy
from frugalign.runs.layout import read_log


def config(tmp_path: Path, **options: Any) -> ProxyConfig:
    given = {
        "model_name_or_path": two_layers(),
        "dataset_name": "frugalign.sandbox:prompts",
        "reward": ["frugalign.sandbox:gold"],
        "output_dir": str(tmp_path / "run"),
        "max_steps": 3,
        "num_iterations": 1,
        "max_new_tokens": 6,
        "num_generations": 4,
        "per_device_train_batch_size": 8,
        "p_t": 1e-3,
        "use_cpu": True,
    }
    return ProxyConfig(**(given | options))


def test_what_is_trained_is_what_is_saved(tmp_path: Path) -> None:
    """The artefact loads on its base with the trained weights; `config.yaml` holds the steps as they ran (4, not 3)."""
    trainer = train_proxy(config(tmp_path))
    found = load_proxy(tmp_path / "run", trainer.lm, trainer.processing_class)
    trained = trainer.model.state_dict()
    assert set(trained) == set(found.state_dict())
    assert all(bool((value == trained[name]).all()) for name, value in found.state_dict().items())
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text()) == trainer.args.resolved()
    assert trainer.args.resolved()["max_steps"] == 4
    assert found.config.objective == "marginal" and found.config.max_new_tokens == 6
    costs = json.loads((tmp_path / "run" / "costs.json").read_text())
    assert costs["reward_calls"] == 2 * 8 and costs["shares"]["of_base"] < 0.01
    assert costs["seconds"]["load"] > 0


class Tracker(TrainerCallback):
    def __init__(self) -> None:
        self.lines: list[dict[str, Any]] = []

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        self.lines.append({"step": state.global_step, "epoch": state.epoch} | (logs or {}))


def test_a_tracker_receives_what_the_log_holds(tmp_path: Path) -> None:
    tracker = Tracker()
    train_proxy(config(tmp_path, logging_steps=2), callbacks=[tracker])
    *lines, summary = tracker.lines
    assert lines == read_log(tmp_path / "run") and "train_runtime" in summary, "the log holds no times"
    assert [line["step"] for line in tracker.lines if "reward" in line] == [2, 4]


@pytest.mark.parametrize("objective", ["sequential", "sequential_integrated"])
@pytest.mark.parametrize("features", ["embedding", "lookahead"])
def test_every_objective_runs_with_both_features(objective: str, features: str, tmp_path: Path) -> None:
    trainer = train_proxy(config(tmp_path, objective=objective, candidate_features=features, advantage="gae"))
    saved = json.loads((tmp_path / "run" / "config.json").read_text())
    assert (saved["objective"], saved["candidate_features"]) == (objective, features)
    assert trainer.state.global_step == 4
    assert any(bool(parameter.any()) for parameter in trainer.model.query_out.parameters())  # starts at zero


@pytest.mark.parametrize("missing", ["model_name_or_path", "dataset_name", "reward"])
def test_what_is_missing_is_said(missing: str, tmp_path: Path) -> None:
    with pytest.raises(FrugalignError, match=f"--{missing} is missing"):
        train_proxy(config(tmp_path, **{missing: None}))
