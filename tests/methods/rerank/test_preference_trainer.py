"""`PreferenceTrainer`: TRL's DPO at γ = 1, loss, gradients and logged numbers; conservative DPO and the imitation term beside it."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.methods.rerank.small_trainer import batch_of, perturb, probes, trainer
from tests.two_layers import two_layers
from transformers import TrainerCallback
from trl import DPOConfig, DPOTrainer

from frugalign.engines.loading import load_model
from frugalign.methods.rerank.trainer import RerankTrainer
from frugalign.runs.save_policy import lora_of


class Stock(DPOTrainer):
    """TRL's, on pairs that are token ids already."""

    def _send_telemetry(self) -> None:
        """Nothing is sent."""

    def _prepare_dataset(self, dataset: Any, *rest: Any) -> Any:
        return dataset


def stock_of(found: RerankTrainer, folder: Path) -> Stock:
    """TRL's trainer of the same base, settings, pairs and weights."""
    lora = found.args.train == "lora"
    base, reference = load_model(two_layers()), None if lora else load_model(two_layers()).model
    base.model.requires_grad_(True)
    args = DPOConfig(
        output_dir=str(folder), beta=found.args.beta, use_cpu=True, bf16=False, gradient_checkpointing=False,
        per_device_train_batch_size=found.args.per_device_train_batch_size, report_to="none", max_length=None,
        seed=found.args.seed, disable_tqdm=True,
    )  # fmt: skip
    pairs: Any = found.train_dataset
    stock = Stock(
        base.model, reference, args, train_dataset=pairs.select_columns(["prompt_ids", "chosen_ids", "rejected_ids"]),
        processing_class=base.tokenizer, peft_config=lora_of(found.args) if lora else None,
    )  # fmt: skip
    perturb(stock)
    return stock


@pytest.mark.parametrize("train", ["lora", "full"], ids=["lora", "every-weight"])
@pytest.mark.parametrize("with_probes", [False, True])
def test_at_full_confidence_it_is_stock_dpo(with_probes: bool, train: str, tmp_path: Path) -> None:
    """Loss, every gradient and every logged number to 1e-6, with and without the states being read; the confidence of each row is 1."""
    columns = {"confidence": [1.0] * 8} if with_probes else None
    found = trainer(tmp_path, probes() if with_probes else None, columns, train=train, precompute_ref_log_probs=False)
    perturb(found)
    stock = stock_of(found, tmp_path / "stock")
    batch, same = batch_of(found), batch_of(stock)
    for name in ("input_ids", "attention_mask", "completion_mask"):
        assert torch.equal(batch[name], same[name]), name
    found.model.train(), stock.model.train()
    expected, ours = stock.compute_loss(stock.model, dict(same)), found.compute_loss(found.model, batch)
    assert float(ours.detach()) == pytest.approx(float(expected.detach()), abs=1e-6)
    assert abs(float(ours.detach()) - 0.6931) > 1e-3, "policy and reference differ"
    expected.backward(), ours.backward()
    theirs = dict(stock.model.named_parameters())
    compared = 0
    for name, parameter in found.model.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(parameter.grad, theirs[name].grad, atol=1e-6, rtol=1e-5)
            compared += 1
    assert compared > 4
    noted = {name: values[-1] for name, values in found.means.steps["train"].items()}
    for name, values in stock._metrics["train"].items():
        if name != "num_tokens":
            assert noted[name] == pytest.approx(values[-1], abs=1e-5, rel=1e-5), name
    assert found.tokens_seen == stock._metrics["train"]["num_tokens"][0]


def test_conservative_dpo_is_a_constant_below_one(tmp_path: Path) -> None:
    """TRL's sigmoid loss ignores label_smoothing; γ = 1 − ε is `(1 − ε)·dpo + ε·(turned round)`, which is more at ε = 0.2."""
    found = trainer(tmp_path, constant_confidence=0.8)
    perturb(found)
    stock = stock_of(found, tmp_path / "stock")
    batch = batch_of(found)
    sure = stock.compute_loss(stock.model, dict(batch))
    turned = dict(batch)
    for name in ("input_ids", "attention_mask", "completion_mask"):
        turned[name] = torch.cat(batch[name].chunk(2)[::-1])
    other = stock.compute_loss(stock.model, turned)
    assert float(found.compute_loss(found.model, batch)) == pytest.approx(
        0.8 * float(sure) + 0.2 * float(other), abs=1e-6
    )


def test_the_imitation_term_is_the_mean_per_token(tmp_path: Path) -> None:
    """In the loss at γ = 1: SFT's mean over tokens, per answer."""
    plain, anchored = trainer(tmp_path / "a"), trainer(tmp_path / "b", sft_weight=0.5)
    batch = batch_of(plain)
    gap = anchored.compute_loss(anchored.model, batch) - plain.compute_loss(plain.model, batch)
    logits = plain.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:4, :-1]
    each = torch.log_softmax(logits, -1).gather(-1, batch["input_ids"][:4, 1:, None]).squeeze(-1)
    mask = batch["completion_mask"][:4, 1:]
    assert float(gap) == pytest.approx(float(-0.5 * ((each * mask).sum(1) / mask.sum(1)).mean()), abs=1e-5)


def test_pairs_of_texts_can_be_evaluated(tmp_path: Path) -> None:
    """Given later, after a step: the loss of the policy as it is, under names of its own."""
    from datasets import Dataset

    from frugalign.sandbox.cached import sample_pairs

    found = trainer(tmp_path, max_steps=1, learning_rate=1e-2)
    found.train()
    seen = found.evaluate(Dataset.from_list(sample_pairs("train", 8)), metric_key_prefix="eval_more")
    assert seen["eval_more_loss"] < 0.6931
    line = found.state.log_history[-1]
    assert line["eval_rewards/margins"] > 0 and "eval_confidence/mean" in line


def test_a_separate_line_does_not_cost_the_regular_one(tmp_path: Path) -> None:
    """Three steps, logged each, the first and the last with a separate line before it: it has no loss and takes no means."""
    found = trainer(tmp_path, max_steps=3)

    class Watching(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step != 2:
                found.log_separately({"watched": 1.0})

    found.add_callback(Watching())
    found.train()
    lines = [line for line in found.state.log_history if "train_runtime" not in line]
    assert [(line["step"], "watched" in line, "loss" in line) for line in lines] == [
        (1, True, False), (1, False, True), (2, False, True), (3, True, False), (3, False, True),
    ]  # fmt: skip
    assert all(("rewards/margins" in line) == ("loss" in line) for line in lines)


def test_a_separate_line_brings_no_regular_one(tmp_path: Path) -> None:
    found = trainer(tmp_path, max_steps=2, logging_steps=100)
    found.train()
    found.control.should_log = False
    found.log_separately({"watched": 1.0})
    assert not found.control.should_log
