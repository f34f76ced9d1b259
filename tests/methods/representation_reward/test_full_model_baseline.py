"""The whole reward model beside the probes: it learns, it is the base's copy, and the base stays what it was."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.methods.representation_reward.test_run import command, home
from tests.two_layers import two_layers
from transformers import TrainingArguments

from frugalign.cli.main import main
from frugalign.engines.fingerprints import fingerprint
from frugalign.engines.loading import load_model
from frugalign.methods.representation_reward.full_model_baseline import PairRewardTrainer, SideCollator, classifier_of

__all__ = ["home"]  # three hundred pairs to learn from


def test_it_starts_as_the_base_and_leaves_it_alone() -> None:
    base = load_model(two_layers())
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


@pytest.mark.slow
def test_the_report_has_its_accuracy_and_cost(capsys: pytest.CaptureFixture[str]) -> None:
    """On 300 noisy pairs it orders more than a coin does, and costs three times the FLOPs of a pass per epoch."""
    flags = {"n_shuffles": 1, "full_model": "true", "full_model_epochs": 2, "full_model_learning_rate": 0.0005}
    assert main(command(**flags)) == 0
    report = json.loads(Path("reward/reward_report.json").read_text())
    full = report["full_model"]
    assert full["accuracy"]["mean"] > 0.55 and len(full["validation_accuracy"]) == 2
    per_pair = report["cost"]["flops_extracting_per_1000"]
    assert 4 < full["flops_training_per_1000"] / per_pair < 8  # 2 epochs · 6 against 2, on answers that pairs share
    assert "a whole reward model, trained on the same pairs" in Path("reward/report.html").read_text()


def test_its_loss_is_trls(tmp_path: Path) -> None:
    """On the same pairs of texts, of different lengths: TRL's loss and gradients to 1e-6."""
    from datasets import Dataset
    from trl.trainer.reward_config import RewardConfig
    from trl.trainer.reward_trainer import RewardTrainer

    class Quiet(RewardTrainer):
        def _send_telemetry(self) -> None:
            """Nothing is sent."""

    base = load_model(two_layers())
    rows = Dataset.from_list(
        [{"chosen_ids": [5, 6, 7], "rejected_ids": [5, 8]}, {"chosen_ids": [9], "rejected_ids": [4, 4, 4, 4]}]
    )
    common: dict[str, Any] = {"use_cpu": True, "report_to": "none", "per_device_train_batch_size": 2}
    ours = PairRewardTrainer(
        classifier_of(base),
        args=TrainingArguments(str(tmp_path / "a"), remove_unused_columns=False, **common),
        train_dataset=rows,
        data_collator=SideCollator(base.tokenizer.pad_token_id),
    )
    theirs = Quiet(
        classifier_of(base),
        args=RewardConfig(str(tmp_path / "b"), bf16=False, gradient_checkpointing=False, max_length=None, **common),
        train_dataset=rows,
        processing_class=base.tokenizer,
    )
    losses = [
        trainer.compute_loss(trainer.model, trainer._prepare_inputs(next(iter(trainer.get_train_dataloader()))))
        for trainer in (ours, theirs)
    ]
    for loss in losses:
        loss.backward()
    assert float(losses[0]) == pytest.approx(float(losses[1]), abs=1e-6) and float(losses[0]) != pytest.approx(0.6931)
    expected = dict(theirs.model.named_parameters())
    for name, parameter in ours.model.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name].grad, atol=1e-6, rtol=1e-5)
