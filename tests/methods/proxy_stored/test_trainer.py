"""`StoredProxyTrainer`: what a step is, what stops it, what columns and rewards do to it, and how it resumes."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from tests.methods.proxy_stored.small_trainer import Gradients, demonstrations, pairs, trainer, weights
from tests.methods.rerank.random_reward import random_probes
from tests.two_layers import two_layers

from frugalign.base.errors import FrugalignError
from frugalign.engines.loading import LoadedModel, load_model
from frugalign.methods.confidence import pair_confidence, posterior_confidence
from frugalign.methods.proxy_stored.best import BEST_FILE, Best
from frugalign.proxy.network import load_proxy
from frugalign.runs.layout import read_log


@pytest.fixture(scope="module")
def base() -> LoadedModel:
    return load_model(two_layers())


def losses(folder: Path, name: str = "loss") -> list[float]:
    return [line[name] for line in read_log(folder) if name in line]


# -- a step ---------------------------------------------------------------------------------------------------------------


def test_it_learns_the_pairs_and_the_brake_holds_it(base: LoadedModel, tmp_path: Path) -> None:
    """Untrained, the loss is log 2 and the policy is the base. A strong brake keeps it there."""
    found = {}
    for weight in (0.0, 10.0):
        folder = tmp_path / str(weight)
        steps = {"max_steps": 30, "eval_steps": 30, "per_device_train_batch_size": 8, "learning_rate": 0.01}
        trainer(base, folder, kl_weight=weight, **steps).train()
        found[weight] = (losses(folder)[-1], losses(folder, "kl")[-1], losses(folder, "rewards/accuracies")[-1])
        assert losses(folder)[0] == pytest.approx(math.log(2), abs=1e-4) and losses(folder, "kl")[0] < 1e-6
    assert found[0.0][0] < 0.55 and found[0.0][2] == 1.0 and found[0.0][1] > 1.0
    assert found[10.0][1] < 0.05 * found[0.0][1]


@pytest.mark.parametrize("rate", [0.003, 0.01])
def test_a_target_is_held(rate: float, base: LoadedModel, tmp_path: Path) -> None:
    """In nats an answer, at rates that would pass it by far. The pairs are still learned."""
    options = {
        "max_steps": 60,
        "eval_steps": 60,
        "per_device_train_batch_size": 8,
        "learning_rate": rate,
        "kl_weight": 0.0,
    }
    found = []
    for name, target in (("free", None), ("held", 0.5)):
        trainer(base, tmp_path / name, target_kl=target, logging_steps=10, **options).train()
        found.append(losses(tmp_path / name, "kl"))
    assert found[0][-1] > 1.0 and max(found[1]) < 0.7 and found[1][-1] > 0.3
    assert losses(tmp_path / "held", "rewards/accuracies")[-1] > 0.8


@pytest.mark.parametrize("options", [{}, {"target_kl": 1e-4}])
def test_an_accumulated_step_is_the_step_of_one_large_batch(
    options: dict[str, Any], base: LoadedModel, tmp_path: Path
) -> None:
    """Two micro-batches of four pairs against one of eight: gradients, weights and the brake, over three steps."""
    common = {"max_steps": 3, "optim": "sgd", "learning_rate": 3.0} | options
    seen = []
    for size, steps in ((8, 1), (4, 2)):
        spy = Gradients()
        found = trainer(
            base,
            tmp_path / str(size),
            per_device_train_batch_size=size,
            gradient_accumulation_steps=steps,
            callbacks=[spy],
            **common,
        )
        found.train()
        seen.append((spy.steps, weights(found), found.brake))
        assert found.ledger.optimizer_steps == 3
    assert len(seen[0][0]) == len(seen[1][0]) == 3
    torch.testing.assert_close(seen[0][0], seen[1][0], atol=1e-5, rtol=1e-3)
    torch.testing.assert_close(seen[0][1], seen[1][1], atol=1e-5, rtol=1e-4)
    assert seen[0][2].last == pytest.approx(seen[1][2].last, rel=1e-4) and seen[0][2].is_beyond == bool(options)


def test_weights_and_confidences_of_rows_count(base: LoadedModel, tmp_path: Path) -> None:
    """Two pairs at confidence ¼ and 1 and at weights 2 and ½, against the losses that each has alone, a few steps from the start."""
    start = trainer(base, tmp_path / "start", max_steps=10, kl_weight=0.0)
    start.train()
    proxy: Any = start.accelerator.unwrap_model(start.model)
    plain = trainer(base, tmp_path / "plain", pairs(2), beta=0.3)
    ratios = plain.log_ratios(plain.stored)
    assert float(ratios.abs().max()) < 1e-5, "that proxy is not trained"
    given = trainer(
        base, tmp_path / "given", pairs(2, confidence=[0.25, None], weight=[2.0, 0.5]), proxy=proxy, beta=0.3
    )
    chosen, rejected = given.log_ratios(given.stored).reshape(-1, 2).unbind(1)
    gap = 0.3 * (chosen - rejected)
    right, wrong = torch.log1p(torch.exp(-gap)), torch.log1p(torch.exp(gap))
    assert float(gap.abs().max()) > 0.01
    expected = (2.0 * (0.25 * right[0] + 0.75 * wrong[0]) + 0.5 * right[1]) / 2
    loss = given.compute_loss(given.model, given._prepare_inputs(given.stored([0, 1])))
    kl = given._noted["kl"][-1]
    assert float(loss.detach()) == pytest.approx(float(expected) + 0.02 * kl, abs=1e-5)


def test_the_weight_of_a_demonstration_counts(base: LoadedModel, tmp_path: Path) -> None:
    """`−log π(y)/|y|`: the mean of three times the first and none of the second."""
    found = trainer(base, tmp_path / "run", demonstrations(2, weight=[3.0, 0.0]), kl_weight=0.0)
    alone = trainer(base, tmp_path / "alone", demonstrations(1), kl_weight=0.0)
    losses = [float(each.compute_loss(each.model, each._prepare_inputs(each.stored(rows))).detach()) for each, rows in ((found, [0, 1]), (alone, [0]))]  # fmt: skip
    assert losses[0] == pytest.approx(1.5 * losses[1], rel=1e-5) and losses[1] > 0.1


def test_the_probes_of_a_reward_give_the_confidence(base: LoadedModel, tmp_path: Path) -> None:
    """γ from the states of the same pass, as the probes score them; a row's own confidence comes first."""
    folder = tmp_path / "reward"
    random_probes().save_pretrained(folder)
    data = pairs(4, confidence=[None, 0.9, None, None])
    found = trainer(base, tmp_path / "run", data, reward=str(folder), confidence_floor=0.0)
    chosen, rejected = found.reader.rewards(found.stored.features)
    gamma = pair_confidence(chosen, rejected, 0.0)
    assert float(gamma.max() - gamma.min()) > 0.01
    expected = [float(gamma[0]), 0.9, *gamma[2:].tolist()]
    assert found.stored.examples.confidence == pytest.approx(expected, abs=1e-6)
    noisy = trainer(
        base, tmp_path / "noisy", pairs(4), reward=str(folder), confidence_floor=0.0, label_noise=0.2
    ).stored.examples.confidence
    assert noisy == pytest.approx(posterior_confidence(chosen, rejected, 0.2, 0.0).tolist(), abs=1e-6)


@pytest.mark.parametrize("objective", ["marginal", "sequential", "sequential_integrated"])
def test_every_objective_trains(objective: str, base: LoadedModel, tmp_path: Path) -> None:
    found = trainer(base, tmp_path / "run", objective=objective, per_device_train_batch_size=8, kl_weight=0.0)
    before = weights(found)
    found.train()
    assert losses(tmp_path / "run")[-1] < losses(tmp_path / "run")[0]
    assert any(not torch.equal(before[name], value) for name, value in weights(found).items())


def test_token_bias_learns_without_the_state(base: LoadedModel, tmp_path: Path) -> None:
    found = trainer(base, tmp_path / "run", candidate_features="token_bias", max_steps=3, kl_weight=0.0)
    found.train()
    assert set(weights(found)) == {"token_bias"} or "query_in.weight" not in weights(found)
    assert losses(tmp_path / "run")[-1] < losses(tmp_path / "run")[0]


# -- validation -----------------------------------------------------------------------------------------------------------


class FallsThenRises:
    """In place of `measure`: the validation losses of a run."""

    def __init__(self, *losses: float) -> None:
        self.losses = list(losses)

    def __call__(self, *_: Any) -> dict[str, float]:
        return {"loss": self.losses.pop(0), "kl": 1.0}


@pytest.mark.parametrize(("patience", "steps", "best"), [(2, 4, 2), (0, 6, 6), (9, 6, 2)])
def test_training_stops_where_it_is_best(
    patience: int, steps: int, best: int, base: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lowest loss is that of step 2. With patience 0 nothing stops, and the last weights are kept."""
    found = trainer(base, tmp_path / "run", validation=pairs(2, 8), max_steps=6, patience=patience)
    seen: list[dict[str, torch.Tensor]] = []
    measured = FallsThenRises(0.7, 0.5, 0.6, 0.55, 0.52, 0.51)

    def measure(stored: Any, proxy: Any) -> dict[str, float]:
        seen.append({name: value.clone() for name, value in proxy.state_dict().items()})
        return measured()

    monkeypatch.setattr(found, "measure", measure)
    found.train()
    assert found.state.global_step == steps and len(seen) == steps
    assert all(torch.equal(value, seen[best - 1][name]) for name, value in weights(found).items())
    assert any(not torch.equal(seen[1][name], value) for name, value in seen[-1].items())


def test_without_validation_it_trains_to_the_end(base: LoadedModel, tmp_path: Path) -> None:
    found = trainer(base, tmp_path / "run", max_steps=2)
    found.train()
    assert found.state.global_step == 2 and not found.best.weights
    with pytest.raises(FrugalignError, match="no eval_dataset"):
        found.evaluate()


def test_the_best_of_equal_losses_is_the_first() -> None:
    best, proxy = Best(1), torch.nn.Linear(1, 1)
    best.observe(1.0, 1, proxy)
    best.observe(1.0, 2, proxy)
    best.observe(math.nan, 3, proxy)
    assert best.step == 1 and best.since == 2 and best.is_over
    again = Best(1)
    again.load_state(json.loads(json.dumps(best.state())))
    assert (again.loss, again.step, again.since) == (1.0, 1, 2)


# -- resuming -------------------------------------------------------------------------------------------------------------


def stopped_after(found: Any, step: int) -> None:
    """Interrupt a training after a step, as Ctrl-C does."""

    class Stop(Exception):
        pass

    train_step = found.training_step

    def training_step(*args: Any, **kwargs: Any) -> Any:
        if found.state.global_step == step:
            raise Stop
        return train_step(*args, **kwargs)

    found.training_step = training_step
    with pytest.raises(Stop):
        found.train()


RESUMED = {"max_steps": 8, "save_strategy": "steps", "save_steps": 3, "eval_steps": 2, "logging_steps": 2}


@pytest.mark.parametrize("options", [{"patience": 9}, {"patience": 9, "target_kl": 0.05}, {"patience": 1}])
def test_a_resumed_run_ends_as_a_whole_one(options: dict[str, Any], base: LoadedModel, tmp_path: Path) -> None:
    """Interrupted in the fourth step, after a checkpoint at three, with the best weights of step two: all is as in one go."""
    data = {"data": pairs(8), "validation": pairs(4, 8), "learning_rate": 0.05}
    runs = [trainer(base, tmp_path / name, **data, **(RESUMED | options)) for name in ("whole", "again")]
    runs[0].train()
    stopped_after(runs[1], 3)
    assert (tmp_path / "again" / "checkpoint-3" / BEST_FILE).is_file()
    resumed = trainer(base, tmp_path / "again", **data, **(RESUMED | options))
    resumed.train(resume_from_checkpoint=True)
    ours, theirs = weights(runs[0]), weights(resumed)
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())
    assert read_log(tmp_path / "again") == read_log(tmp_path / "whole")
    assert resumed.best.state() == runs[0].best.state() and resumed.brake == runs[0].brake
    assert resumed.ledger.counts() == runs[0].ledger.counts()


def test_a_run_that_had_stopped_early_does_not_train_on(
    base: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed after its last checkpoint, before the artefact: the checkpoint knows that training was over."""
    options = {"max_steps": 9, "patience": 1, "save_strategy": "steps", "save_steps": 1, "validation": pairs(2, 8)}
    found = trainer(base, tmp_path / "run", **options)
    monkeypatch.setattr(found, "measure", FallsThenRises(0.5, 0.6))
    found.train()
    assert found.state.global_step == 2
    again = trainer(base, tmp_path / "run", **options)
    monkeypatch.setattr(again, "measure", FallsThenRises())
    again.train(resume_from_checkpoint=True)
    assert again.state.global_step == 2 and again.best.step == 1
    assert all(torch.equal(value, weights(again)[name]) for name, value in weights(found).items())


def test_a_saved_model_holds_no_second_proxy(base: LoadedModel, tmp_path: Path) -> None:
    found = trainer(base, tmp_path / "run", validation=pairs(2, 8), max_steps=1)
    found.train()
    found.save_model(str(tmp_path / "model"))
    assert (
        not (tmp_path / "model" / BEST_FILE).exists()
        and load_proxy(tmp_path / "model").config.p_t == found.model.config.p_t
    )


# -- what it refuses --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "options", "sentence"),
    [
        ({"prompt": ["a", "b"]}, {}, "This data set holds prompts alone, which teach nothing"),
        ({"prompt": ["a"], "completion": ["b"], "label": [False]}, {}, "This data set labels single answers as good or bad"),
        ({"prompt": ["a", "b"]}, {"principles": "harmless"}, "This data holds prompts alone"),
        ({"prompt": ["a"], "completion": ["b"], "weight": [-1.0]}, {}, "Row 1 has the weight -1.0; it must be"),
        ({"prompt": ["a"], "chosen": ["b"], "rejected": ["c"], "confidence": [2.0]}, {}, r"Row 1 has the confidence 2.0; it must be a number in \[0, 1\]"),
    ],
)  # fmt: skip
def test_bad_data_is_one_sentence(
    data: dict[str, list[Any]], options: dict[str, Any], sentence: str, base: LoadedModel, tmp_path: Path
) -> None:
    with pytest.raises(FrugalignError, match=sentence) as raised:
        trainer(base, tmp_path / "run", Dataset.from_dict(data), **options)
    assert "\n" not in str(raised.value)


def test_a_reward_is_for_pairs_only(base: LoadedModel, tmp_path: Path) -> None:
    random_probes().save_pretrained(tmp_path / "reward")
    with pytest.raises(FrugalignError, match="confidence in the labels of pairs"):
        trainer(base, tmp_path / "run", demonstrations(2), reward=str(tmp_path / "reward"))


def test_a_resumed_run_needs_the_same_data(base: LoadedModel, tmp_path: Path) -> None:
    options = {"max_steps": 3, "save_strategy": "steps", "save_steps": 2}
    stopped_after(trainer(base, tmp_path / "run", **options), 2)
    with pytest.raises(FrugalignError, match="other data: resume with the same settings"):
        trainer(base, tmp_path / "run", pairs(8, 1), **options).train(resume_from_checkpoint=True)
    shutil.rmtree(tmp_path / "run")
