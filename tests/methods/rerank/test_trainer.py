"""`RerankTrainer`: γ from the policy's own states, on conversations that end where the probes read."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from tests.methods.rerank.small_trainer import batch_of, perturb, probes, trainer
from tests.two_layers import two_layers

from frugalign.base.errors import FrugalignError
from frugalign.data.groups import Groups
from frugalign.engines.loading import load_model
from frugalign.methods.rerank.config import RerankConfig
from frugalign.methods.rerank.trainer import RerankTrainer, _data_hashes
from frugalign.rewards.representation.network import RepresentationConfig, RepresentationModel
from frugalign.sandbox.cached import sample_pairs


def test_the_states_are_those_of_the_probes_own_definition(tmp_path: Path) -> None:
    """What the hook catches at the endpoint, in one padded batch, is what scoring each answer alone reads; γ follows from it."""
    from frugalign.engines.sentences import sentence_ends
    from frugalign.engines.states import endpoint_states

    reward = probes()
    found = trainer(tmp_path, reward, confidence_floor=0.0)
    perturb(found)
    batch = batch_of(found)
    seen: list[torch.Tensor] = []
    assert found.probes is not None
    calibrated = reward.calibrated
    found.probes.calibrated = lambda states: seen.append(states) or calibrated(states)  # type: ignore[method-assign,func-returns-value]
    found.compute_loss(found.model, batch)
    parts = zip(batch["input_ids"], batch["attention_mask"].bool(), batch["completion_mask"].bool(), strict=True)
    split = [(ids[real & ~answer].tolist(), ids[real & answer].tolist()) for ids, real, answer in parts]
    ends = sentence_ends(found.processing_class)
    alone = endpoint_states(found.model, [ends.read(*row) for row in split], [1, 2])
    torch.testing.assert_close(seen[0], alone, atol=1e-4, rtol=1e-4)
    gamma = torch.sigmoid(torch.sub(*calibrated(alone).chunk(2)))
    assert found.means.steps["train"]["confidence/mean"][-1] == pytest.approx(float(gamma.mean()), abs=1e-5)
    end = found.processing_class.eos_token_id
    assert all(answer[-1] == end for _, answer in split)


@pytest.mark.slow
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
    assert float(silent.compute_loss(silent.model, batch_of(silent))) == 0.0


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"weight": [1.0] * 7 + [-1.0]}, "Row 8 has the weight -1.0; it must be a finite number of at least 0"),
        ({"weight": [None, *[True] * 7]}, "Row 2 has the weight True; it must be"),
        ({"confidence": ["0.5"] * 8}, "Row 1 has the confidence '0.5'; it must be a number in"),
    ],
)
def test_a_bad_weight_or_confidence_is_named(columns: dict[str, list[Any]], words: str, tmp_path: Path) -> None:
    with pytest.raises(FrugalignError, match=words):
        trainer(tmp_path, probes(), columns)


def test_what_is_not_carried_over_says_so(tmp_path: Path) -> None:
    for wrong in ({"loss_type": ["ipo"]}, {"ld_alpha": 0.5}, {"confidence_floor": 1.5}, {"confidence": "sure"}):
        with pytest.raises(FrugalignError):
            RerankConfig(output_dir=str(tmp_path), use_cpu=True, **wrong)
    with pytest.raises(FrugalignError, match="needs a representation reward"):
        trainer(tmp_path, confidence="pair")
    with pytest.raises(FrugalignError, match="another width"):
        trainer(tmp_path, RepresentationModel(RepresentationConfig(width=3, layers=[1])))


def test_the_reference_of_full_training_is_what_is_in_memory(tmp_path: Path) -> None:
    """A model changed since it was loaded is its own reference: at step 0 policy and reference agree."""
    loaded = load_model(two_layers())
    with torch.no_grad():
        for parameter in loaded.model.parameters():
            parameter.mul_(1.05)
    loaded.model.requires_grad_(True)
    args = RerankConfig(
        output_dir=str(tmp_path),
        confidence="constant",
        max_steps=1,
        use_cpu=True,
        save_strategy="no",
        train="full",
        precompute_ref_log_probs=False,
    )
    rows = Dataset.from_list(sample_pairs("train", 4))
    found = RerankTrainer(loaded.model, None, args, rows, processing_class=loaded.tokenizer)
    loss = found.compute_loss(found.model, batch_of(found))
    assert float(loss) == pytest.approx(math.log(2), abs=1e-6)
    with found.starting_model() as start:
        assert start is not found.model


@pytest.mark.slow
def test_the_reward_of_online_dpo_stays_as_it_was_fitted(tmp_path: Path) -> None:
    given = probes()
    found = trainer(tmp_path, given, reward_refresh_steps=1, max_steps=2)
    found.train()
    assert found.probes is not None and found.reward is not None
    assert not torch.equal(found.probes.weight, given.weight) and torch.equal(found.reward.weight, given.weight)


def test_a_checkpoint_is_not_resumed_under_other_inherited_settings(tmp_path: Path) -> None:
    """Those of transformers as ours, and dropout."""
    saved: dict[str, Any] = {"save_strategy": "steps", "save_steps": 1}
    trainer(tmp_path, **saved, max_steps=1).train()
    changes: list[dict[str, Any]] = [
        {"weight_decay": 0.1},
        {"adam_epsilon": 1e-3},
        {"gradient_accumulation_steps": 2},
        {"lr_scheduler_type": "constant"},
        {"disable_dropout": False},
    ]
    for change in changes:
        with pytest.raises(FrugalignError, match=f"was made with {next(iter(change))} "):
            trainer(tmp_path, **saved, **change).train(resume_from_checkpoint=True)
    assert trainer(tmp_path, **saved, logging_steps=2).train(resume_from_checkpoint=True).global_step == 2
    assert not list(tmp_path.rglob("*.bin"))


def test_groups_and_labelled_pairs_are_compared_at_resume() -> None:
    """Stored responses and their rewards by content; responses that are sampled again by their prompts alone."""
    first = Groups(["a", "b"], [["x", "y"], ["z", "w"]], rewards=[[1.0, 2.0], [3.0, 4.0]])
    others = [
        replace(first, completions=[["x", "y"], ["z", "v"]]),
        replace(first, rewards=[[1.0, 2.0], [4.0, 3.0]]),
        replace(first, rewards=None),
    ]
    stored, sampled = (
        [str(_data_hashes(None, groups, is_sampled=is_sampled)) for groups in (first, *others)]
        for is_sampled in (False, True)
    )
    assert len(set(stored)) == 4 and len(set(sampled)) == 1
