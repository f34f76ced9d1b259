"""`RerankTrainer`: TRL's DPO at γ = 1 exactly, moving confidence otherwise, on exchanges that end where the probes read."""

import inspect
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from trl import DPOTrainer

import frugalign.sandbox as sandbox
from frugalign.base.errors import FrugalignError
from frugalign.engines.loading import load_model
from frugalign.methods.rerank.config import RerankConfig
from frugalign.methods.rerank.loss import (
    batch_confidence,
    confidence_loss,
    imitation_loss,
    pair_confidence,
    posterior_confidence,
)
from frugalign.methods.rerank.trainer import RerankTrainer
from frugalign.rewards.representation.network import RepresentationConfig, RepresentationModel
from frugalign.sandbox.cached import sample_pairs


def probes(scale: float = 1.0) -> RepresentationModel:
    model = load_model(sandbox.model).model
    found = RepresentationModel(RepresentationConfig(width=model.config.hidden_size, layers=[2, 5]))
    torch.manual_seed(0)
    for parameter in found.parameters():
        torch.nn.init.normal_(parameter, std=0.2 * scale)
    return found


def trainer(
    folder: Path, reward: Any = None, columns: dict[str, list[Any]] | None = None, **options: Any
) -> RerankTrainer:
    given = {
        "max_steps": 2,
        "per_device_train_batch_size": 4,
        "logging_steps": 1,
        "use_cpu": True,
        "disable_tqdm": True,
        "save_strategy": "no",
    }
    if reward is None:
        given["confidence"] = "constant"
    args = RerankConfig(output_dir=str(folder), **(given | options))
    rows = sample_pairs("train", 8)
    data = Dataset.from_dict(
        {name: [row[name] for row in rows] for name in ("prompt", "chosen", "rejected")} | (columns or {})
    )
    loaded = load_model(sandbox.model)
    loaded.model.requires_grad_(True)
    return RerankTrainer(loaded.model, reward, args, data, processing_class=loaded.tokenizer)


def batch_of(found: RerankTrainer) -> dict[str, Any]:
    inputs: dict[str, Any] = next(iter(found.get_train_dataloader()))
    return inputs


def perturb(found: Any) -> None:
    """A LoRA that does something, the same one each time."""
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in found.model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.02)


# -- the formulas -------------------------------------------------------------------------------------------------------


def test_confidence_by_hand() -> None:
    """Gaps of log 3, 0 and −log 3: ¾, ½, ¼; floored ¾, ½, ½. Batch: κ = 7.5, mean σ of (log 3, 0) is ⅝, of (0, 0) ½."""
    chosen, rejected = torch.tensor([math.log(3), 1.0, 0.0]), torch.tensor([0.0, 1.0, math.log(3)])
    torch.testing.assert_close(pair_confidence(chosen, rejected, 0.0), torch.tensor([0.75, 0.5, 0.25]))
    torch.testing.assert_close(pair_confidence(chosen, rejected), torch.tensor([0.75, 0.5, 0.5]))
    found = batch_confidence(torch.tensor([math.log(3), 0.0]) + 2, torch.zeros(2) + 2, mu=2.0)
    torch.testing.assert_close(found, torch.full((2,), 1 / (1 + math.exp(-7.5 / 8))))
    assert batch_confidence(torch.zeros(2), torch.ones(2), 0.0).tolist() == [0.5, 0.5]
    # ε = ¼: labels that the states call right three times in four are surely right, undecided ones keep ¾, and of log 2 (q = ⅔, p = ⅚)
    # 15/16 are; no noise leaves every label as it is.
    q = torch.tensor([math.log(3), math.log(2), 0.0, -math.log(3)])
    torch.testing.assert_close(posterior_confidence(q, 0 * q, 0.25, 0.0), torch.tensor([1, 15 / 16, 0.75, 0.0]))
    torch.testing.assert_close(posterior_confidence(q, 0 * q, 0.25), torch.tensor([1, 15 / 16, 0.75, 0.5]))
    torch.testing.assert_close(posterior_confidence(q, 0 * q, 1e-9), torch.ones(4), atol=1e-6, rtol=0)
    assert not pair_confidence(chosen.requires_grad_(), rejected).requires_grad


def test_the_loss_by_hand() -> None:
    """β = ½, Δ = 2·log 3: −¾·log ¾ − ¼·log ¼. For γ < ½ the gradient prefers the rejected answer; at ½ and Δ = 0 there is none."""
    delta = torch.tensor([2 * math.log(3)])
    expected = -0.75 * math.log(0.75) - 0.25 * math.log(0.25)
    assert float(confidence_loss(delta, torch.tensor([0.75]), 0.5)) == pytest.approx(expected, abs=1e-6)
    for gamma, sign in ((1.0, -1), (0.5, 0), (0.2, 1)):
        delta = torch.zeros(1, requires_grad=True)
        confidence_loss(delta, torch.tensor([gamma]), 0.5).sum().backward()
        assert delta.grad is not None and float(delta.grad.sign()) == sign


# -- on TRL -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("with_probes", [False, True])
def test_at_full_confidence_it_is_stock_dpo(with_probes: bool, tmp_path: Path) -> None:
    """Loss and every gradient to 1e-6, with and without the states being caught; the confidence of each row is 1."""
    columns = {"confidence": [1.0] * 8} if with_probes else None
    found = trainer(tmp_path, probes() if with_probes else None, columns)
    perturb(found)
    batch = batch_of(found)
    stock_batch = {name: value for name, value in batch.items() if name != "confidence"}
    stock = DPOTrainer._compute_loss(found, found.model, dict(stock_batch), False)
    stock.backward()
    expected = {name: p.grad.clone() for name, p in found.model.named_parameters() if p.grad is not None}
    found.model.zero_grad()
    ours = found._compute_loss(found.model, dict(batch), False)
    ours.backward()
    assert float(ours) == pytest.approx(float(stock), abs=1e-6)
    assert len(expected) > 4
    for name, parameter in found.model.named_parameters():
        if name in expected:
            torch.testing.assert_close(parameter.grad, expected[name], atol=1e-6, rtol=1e-5)


def test_conservative_dpo_is_a_constant_below_one(tmp_path: Path) -> None:
    """TRL's sigmoid loss ignores label_smoothing; γ = 1 − ε is `(1 − ε)·dpo + ε·(turned round)`, which is more at ε = 0.2."""
    found = trainer(tmp_path, constant_confidence=0.8)
    perturb(found)
    batch = batch_of(found)
    sure = DPOTrainer._compute_loss(found, found.model, dict(batch), False)
    turned = dict(batch)
    for name in ("input_ids", "attention_mask", "completion_mask"):
        turned[name] = torch.cat(batch[name].chunk(2)[::-1])
    other = DPOTrainer._compute_loss(found, found.model, turned, False)
    found_loss = found._compute_loss(found.model, dict(batch), False)
    assert float(found_loss) == pytest.approx(0.8 * float(sure) + 0.2 * float(other), abs=1e-6)


def test_the_states_are_those_of_the_probes_own_definition(tmp_path: Path) -> None:
    """What the hook catches at the endpoint, in one padded batch, is what scoring each answer alone reads; γ follows from it."""
    from frugalign.engines.states import endpoint_states

    reward = probes()
    found = trainer(tmp_path, reward, confidence_floor=0.0)
    perturb(found)
    batch = batch_of(found)
    seen: list[torch.Tensor] = []
    assert found.probes is not None
    calibrated = reward.calibrated
    found.probes.calibrated = lambda states: seen.append(states) or calibrated(states)  # type: ignore[method-assign,func-returns-value]
    found._compute_loss(found.model, dict(batch), False)
    texts = [ids[mask.bool()].tolist() for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)]
    alone = endpoint_states(found.model, texts, [2, 5])
    torch.testing.assert_close(seen[0], alone, atol=1e-4, rtol=1e-4)
    gamma = torch.sigmoid(torch.sub(*calibrated(alone).chunk(2)))
    assert found._metrics["train"]["confidence/mean"][-1] == pytest.approx(float(gamma.mean()), abs=1e-5)
    end = found.processing_class.eos_token_id
    assert all(text[-1] == end for text in texts)


def test_policy_and_reference_part_and_the_rows_own_columns_count(tmp_path: Path) -> None:
    """After a step the reference (the adapter switched off) is where it was; a weight of 0 leaves a row out of the loss."""
    sure = {"weight": [0.0] * 4 + [1.0] * 4, "confidence": [1.0, None] * 4}
    found = trainer(tmp_path, probes(), sure, learning_rate=1e-2)
    batch = batch_of(found)
    with found.model.disable_adapter():
        before = found.model(batch["input_ids"]).logits
    found.train()
    with found.model.disable_adapter():
        torch.testing.assert_close(found.model(batch["input_ids"]).logits, before)
    assert float((found.model(batch["input_ids"]).logits - before).abs().max()) > 1e-3
    line = next(line for line in found.state.log_history if "confidence/mean" in line)
    assert 0.5 <= line["confidence/mean"] <= 1 and "representation_reward/chosen" in line
    silent = trainer(tmp_path / "silent", probes(), {"weight": [0.0] * 8})
    assert float(silent._compute_loss(silent.model, batch_of(silent), False)) == 0.0


def test_what_is_not_carried_over_says_so(tmp_path: Path) -> None:
    for wrong in ({"loss_type": ["ipo"]}, {"ld_alpha": 0.5}, {"confidence_floor": 1.5}, {"confidence": "sure"}):
        with pytest.raises(FrugalignError):
            RerankConfig(output_dir=str(tmp_path), use_cpu=True, **wrong)
    with pytest.raises(FrugalignError, match="needs a representation reward"):
        trainer(tmp_path, confidence="pair")
    with pytest.raises(FrugalignError, match="another width"):
        trainer(tmp_path, RepresentationModel(RepresentationConfig(width=3, layers=[1])))


def test_every_method_of_trl_that_is_overridden_has_its_signature() -> None:
    """Private methods may change in any version of TRL: this says which one did."""
    expected = {
        "_compute_loss": ["model", "inputs", "return_outputs"],
        "_prepare_dataset": ["dataset", "processing_class", "args", "dataset_name"],
        "_set_signature_columns_if_needed": [],
        "_send_telemetry": [],
        "training_step": ["args", "kwargs"],
        "log": ["logs", "start_time"],
    }
    for name, parameters in expected.items():
        for kind in (DPOTrainer, RerankTrainer):
            assert list(inspect.signature(getattr(kind, name)).parameters) == ["self", *parameters], name
    overridden = {name for name, value in vars(RerankTrainer).items() if callable(value) and hasattr(DPOTrainer, name)}
    assert {name for name in overridden if name[:2] != "__"} == set(expected)


def test_the_imitation_term_by_hand(tmp_path: Path) -> None:
    """γ = 1: the chosen answer's −ℓ; ¾: half of it; ½: nothing; ¼: half of the other's. In the loss at γ = 1: SFT's mean over tokens, per answer."""
    chosen, rejected = torch.tensor([-1.0] * 4), torch.tensor([-3.0] * 4)
    found = imitation_loss(chosen, rejected, torch.tensor([1.0, 0.75, 0.5, 0.25]))
    assert found.tolist() == [1.0, 0.5, 0.0, 1.5]
    plain, anchored = trainer(tmp_path / "a"), trainer(tmp_path / "b", sft_weight=0.5)
    batch = batch_of(plain)
    gap = anchored._compute_loss(anchored.model, dict(batch), False) - plain._compute_loss(
        plain.model, dict(batch), False
    )
    logits = plain.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:4, :-1]
    each = torch.log_softmax(logits, -1).gather(-1, batch["input_ids"][:4, 1:, None]).squeeze(-1)
    mask = batch["completion_mask"][:4, 1:]
    assert float(gap) == pytest.approx(float(-0.5 * ((each * mask).sum(1) / mask.sum(1)).mean()), abs=1e-5)


def test_the_reference_of_full_training_is_what_is_in_memory(tmp_path: Path) -> None:
    """A model changed since it was loaded is its own reference: at step 0 policy and reference agree."""
    loaded = load_model(sandbox.model)
    with torch.no_grad():
        for parameter in loaded.model.parameters():
            parameter.mul_(1.05)
    loaded.model.requires_grad_(True)
    args = RerankConfig(output_dir=str(tmp_path), confidence="constant", max_steps=1, use_cpu=True, save_strategy="no")
    rows = Dataset.from_list(sample_pairs("train", 4))
    found = RerankTrainer(loaded.model, None, args, rows, processing_class=loaded.tokenizer, peft_config=None)
    loss = found._compute_loss(found.model, batch_of(found), False)
    assert float(loss) == pytest.approx(math.log(2), abs=1e-6)
    with found.starting_model() as start:
        assert start is not found.model


def test_the_reward_of_online_dpo_stays_as_it_was_fitted(tmp_path: Path) -> None:
    given = probes()
    found = trainer(tmp_path, given, reward_refresh_steps=1, max_steps=2)
    found.train()
    assert found.probes is not None and found.reward is not None
    assert not torch.equal(found.probes.weight, given.weight) and torch.equal(found.reward.weight, given.weight)
