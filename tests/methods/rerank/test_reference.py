"""The reference's log-probabilities ahead of training: the same run to the last bit, without a second model and without passes twice."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from tests.methods.rerank.small_trainer import batch_of, trainer

from frugalign.base.errors import FrugalignError
from frugalign.methods.rerank.collator import REFERENCE
from frugalign.methods.rerank.trainer import RerankTrainer
from frugalign.sandbox.cached import sample_pairs


def weights(found: RerankTrainer) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in found.model.named_parameters() if p.requires_grad}


def trained(folder: Path, **options: Any) -> RerankTrainer:
    found = trainer(folder, learning_rate=1e-3, **options)
    found.train()
    return found


@pytest.mark.slow
@pytest.mark.parametrize("train", ["lora", "full"], ids=["lora", "every-weight"])
def test_one_epoch_is_the_same_with_and_without(train: str, tmp_path: Path) -> None:
    ahead, along = (
        trained(tmp_path / str(wanted), train=train, precompute_ref_log_probs=wanted) for wanted in (True, False)
    )
    assert REFERENCE[0] in ahead.train_dataset.column_names and REFERENCE[0] not in along.train_dataset.column_names
    assert "read" in ahead.ledger.seconds and "read" not in along.ledger.seconds
    expected = weights(along)
    assert expected and all(torch.equal(value, expected[name]) for name, value in weights(ahead).items())


def test_every_weight_keeps_no_second_model(tmp_path: Path) -> None:
    """By default the weights before training are read once: the loss starts at log 2, and afterwards the start is gone."""
    found = trainer(tmp_path, train="full", learning_rate=1e-3)
    assert found.carrier.copy is None
    assert float(found.compute_loss(found.model, batch_of(found))) == pytest.approx(math.log(2), abs=1e-6)
    found.train()
    losses = [line["loss"] for line in found.state.log_history if "loss" in line]
    assert losses[0] == pytest.approx(math.log(2), abs=1e-4) and losses[1] != losses[0]
    with pytest.raises(FrugalignError, match="precompute_ref_log_probs false"):
        found.evaluate(Dataset.from_list(sample_pairs("train", 4)))


def test_only_rows_that_the_run_gets_to_are_run(tmp_path: Path) -> None:
    found = trained(tmp_path, train="full", max_steps=1)
    missing = [math.isnan(value) for value in found.train_dataset[REFERENCE[0]]]
    assert sum(missing) == 4
    noted = [line for line in found.state.log_history if "loss" in line]
    assert all(math.isfinite(line["loss"]) for line in noted)


@pytest.mark.slow
def test_several_epochs_run_the_reference_once(tmp_path: Path) -> None:
    """Three epochs of a LoRA: four passes over the tokens in place of six, and of a run of one epoch two."""
    found = trained(tmp_path / "three", max_steps=-1, num_train_epochs=3)
    assert found.state.global_step == 6 and not any(map(math.isnan, found.train_dataset[REFERENCE[1]]))
    assert found.ledger.lm_forward_tokens == found.tokens_seen * 4 // 3
    once = trained(tmp_path / "one", max_steps=-1, num_train_epochs=1)
    assert once.ledger.lm_forward_tokens == 2 * once.tokens_seen


@pytest.mark.slow
def test_rows_that_an_epoch_drops_are_there_in_the_next(tmp_path: Path) -> None:
    """Eight pairs in batches of three, the incomplete one dropped: each epoch leaves out others."""
    options = {"max_steps": -1, "num_train_epochs": 4, "per_device_train_batch_size": 3, "dataloader_drop_last": True}
    found = trained(tmp_path, train="full", **options)
    assert not any(map(math.isnan, found.train_dataset[REFERENCE[0]]))
    assert all(math.isfinite(line["loss"]) for line in found.state.log_history if "loss" in line)


@pytest.mark.slow
def test_held_out_pairs_are_run_once_too(tmp_path: Path) -> None:
    ahead, along = (
        trained(tmp_path / str(wanted), eval_steps=1, precompute_ref_log_probs=wanted, held_out=4)
        for wanted in (None, False)
    )
    assert REFERENCE[0] in ahead.eval_dataset.column_names and REFERENCE[0] not in along.eval_dataset.column_names
    losses = [
        [line["eval_loss"] for line in found.state.log_history if "eval_loss" in line] for found in (ahead, along)
    ]
    assert len(losses[0]) == 2 and losses[0] == pytest.approx(losses[1], abs=1e-6)
