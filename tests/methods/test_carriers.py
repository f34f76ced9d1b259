"""What is trained, and what it started from."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset
from peft import get_peft_model
from tests.methods.rerank.small_trainer import batch_of, perturb, trainer
from tests.two_layers import two_layers

from frugalign.engines.loading import load_model
from frugalign.methods.carriers import GivenAdapter
from frugalign.methods.rerank.config import RerankConfig
from frugalign.methods.rerank.trainer import RerankTrainer
from frugalign.runs.save_policy import lora_of
from frugalign.sandbox.cached import sample_pairs


@pytest.mark.slow
def test_an_adapter_that_was_there_before_is_its_own_reference(tmp_path: Path) -> None:
    """The start is the model with that adapter as it was; after steps it is still, and the saved adapter is the trained one alone."""
    loaded = load_model(two_layers())
    args = RerankConfig(
        output_dir=str(tmp_path), confidence="constant", max_steps=2, per_device_train_batch_size=4, use_cpu=True,
        save_strategy="no", disable_tqdm=True, learning_rate=1e-2,
    )  # fmt: skip
    torch.manual_seed(0)
    model = get_peft_model(loaded.model, lora_of(args))
    perturb(SimpleNamespace(model=model))
    rows = Dataset.from_list(sample_pairs("train", 8))
    found = RerankTrainer(model, None, args, rows, processing_class=loaded.tokenizer)
    assert isinstance(found.carrier, GivenAdapter)
    batch = batch_of(found)
    before = model(batch["input_ids"]).logits
    assert float(found.compute_loss(found.model, batch)) == pytest.approx(0.693147, abs=1e-5)
    found.train()
    moved = model(batch["input_ids"]).logits
    assert float((moved - before).abs().max()) > 1e-3
    with found.starting_model() as start:
        torch.testing.assert_close(start(batch["input_ids"]).logits, before)
    torch.testing.assert_close(model(batch["input_ids"]).logits, moved)
    assert list(model.peft_config) == ["default"]


def test_a_reference_pass_between_forward_and_backward_leaves_the_gradient_alone(tmp_path: Path) -> None:
    """The given adapter's weights are lent while the policy's graph is alive."""
    loaded = load_model(two_layers())
    args = RerankConfig(output_dir=str(tmp_path), confidence="constant", use_cpu=True, save_strategy="no")
    torch.manual_seed(0)
    model = get_peft_model(loaded.model, lora_of(args))
    rows = Dataset.from_list(sample_pairs("train", 4))
    found = RerankTrainer(model, None, args, rows, processing_class=loaded.tokenizer)
    perturb(SimpleNamespace(model=model))
    batch, gradients = batch_of(found), []
    for between in (False, True):
        model.zero_grad()
        loss = found.carrier.score(model, batch, None).sums.sum()
        if between:
            found.carrier.score_before(batch)
        loss.backward()
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
    assert gradients[0] and all(torch.equal(value, gradients[1][name]) for name, value in gradients[0].items())


def test_a_new_lora_starts_from_the_model_without_it(tmp_path: Path) -> None:
    found = trainer(tmp_path)
    perturb(found)
    batch = batch_of(found)
    plain = load_model(two_layers()).model(batch["input_ids"]).logits
    with found.starting_model() as start:
        torch.testing.assert_close(start(batch["input_ids"]).logits, plain)
    assert float((found.model(batch["input_ids"]).logits - plain).abs().max()) > 1e-3
