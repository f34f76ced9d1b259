"""The whole reward model beside the probes: it learns, it is the base's copy, and the base stays what it was."""

import json
from pathlib import Path

import pytest
import torch
from tests.methods.representation_reward.test_run import command, home

import frugalign.sandbox as sandbox
from frugalign.cli.main import main
from frugalign.engines.fingerprints import fingerprint
from frugalign.engines.loading import load_model
from frugalign.methods.representation_reward.full_model_baseline import classifier_of

__all__ = ["home"]  # three hundred pairs to learn from


def test_it_starts_as_the_base_and_leaves_it_alone() -> None:
    base = load_model(sandbox.model)
    before = fingerprint(base.model, base.tokenizer, name="x")
    found = classifier_of(base)
    ids = torch.tensor([[5, 6, 7]])
    ours = found.base_model(ids).last_hidden_state
    torch.testing.assert_close(ours, base.model.base_model(ids).last_hidden_state)
    with torch.no_grad():
        for parameter in found.parameters():
            parameter.add_(1.0)
    assert fingerprint(base.model, base.tokenizer, name="x") == before
    assert found.num_labels == 1


def test_the_report_has_its_accuracy_and_cost(capsys: pytest.CaptureFixture[str]) -> None:
    """On 300 noisy pairs it orders more than a coin does, and costs three times the FLOPs of a pass per epoch."""
    flags = {"n_shuffles": 1, "full_model": "true", "full_model_epochs": 2, "full_model_learning_rate": 0.0005}
    assert main(command(**flags)) == 0
    report = json.loads(Path("reward/reward_report.json").read_text())
    full = report["full_model"]
    assert full["accuracy"]["mean"] > 0.55 and len(full["validation_accuracy"]) == 2
    per_pair = report["cost"]["flops_extracting_per_1000"]
    assert 4 < full["flops_training_per_1000"] / per_pair < 8  # 2 epochs · 6 against 2, on answers that pairs share
    assert "a whole reward model, trained with TRL" in Path("reward/report.html").read_text()
