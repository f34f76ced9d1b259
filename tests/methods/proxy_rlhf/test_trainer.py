"""`ProxyTrainer` on a small model: what it leaves behind, and what it leaves alone."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file
from tests.methods.proxy_rlhf.small_trainer import ORDERS, dataset, digest, short, trainer, vowels
from tests.two_layers import two_layers
from transformers import Trainer, TrainerCallback

from frugalign import sandbox
from frugalign.base.errors import FrugalignError
from frugalign.engines.loading import LoadedModel, load_model
from frugalign.methods.proxy_rlhf import ProxyConfig, ProxyTrainer
from frugalign.proxy import attach
from frugalign.proxy.network import default_p_t
from frugalign.runs.checkpoints import WholeCheckpoints
from frugalign.runs.layout import read_log


@pytest.fixture(scope="module")
def base() -> LoadedModel:
    return load_model(two_layers())


def test_ten_lines_in_a_notebook(tmp_path: Path) -> None:
    """A folder's name, a function, a data set: train, and generate with the result."""
    data = Dataset.from_dict({"prompt": ORDERS})
    args = ProxyConfig(
        output_dir=str(tmp_path), max_steps=2, num_iterations=1, max_new_tokens=8, per_device_train_batch_size=16
    )
    found = ProxyTrainer(model=two_layers(), reward_funcs=short, args=args, train_dataset=data)
    found.train()
    found.save_model()
    tokens = found.processing_class(ORDERS[:1], return_tensors="pt")
    with attach(found.lm, found.model):
        answer = found.lm.generate(**tokens, max_new_tokens=4, do_sample=True, top_k=0)
    assert answer.shape[1] > tokens["input_ids"].shape[1]
    assert (tmp_path / "model.safetensors").is_file()


def test_the_frozen_model_stays_bit_for_bit_and_out_of_everything_saved(base: LoadedModel, tmp_path: Path) -> None:
    before = digest(base.model)
    found = trainer(base, tmp_path, save_steps=2)
    start = {name: value.clone() for name, value in found.model.state_dict().items()}
    found.train()
    assert digest(base.model) == before
    assert not any(parameter.requires_grad or parameter.grad is not None for parameter in base.model.parameters())
    own = found.model.state_dict()
    assert any(not torch.equal(value, start[name]) for name, value in own.items())
    for checkpoint in ("checkpoint-2", "checkpoint-4"):
        files = list((tmp_path / checkpoint).rglob("*"))
        assert sum(file.stat().st_size for file in files) < 1_000_000
        saved = load_file(tmp_path / checkpoint / "model.safetensors")
        assert {name: value.shape for name, value in saved.items()} == {name: v.shape for name, v in own.items()}
    n_base = sum(parameter.numel() for parameter in base.model.parameters())
    assert sum(value.numel() for value in own.values()) < 0.01 * n_base


def test_metrics_and_costs_are_written_as_the_run_goes(base: LoadedModel, tmp_path: Path) -> None:
    found = trainer(base, tmp_path)
    found.train()
    lines = [line for line in read_log(tmp_path) if "reward" in line]
    assert [line["step"] for line in lines] == [2, 4]
    expected = {
        "reward", "kl", "kl_restriction", "kl_choice", "acceptance", "rejections_per_token", "entropy", "clip_fraction",
        "candidates", "capped", "completion_length", "cut_share", "beta", "loss",
    }  # fmt: skip
    assert expected <= set(lines[0])
    for line in lines:
        assert line["kl"] == pytest.approx(line["kl_restriction"] + line["kl_choice"], abs=1e-5)
    costs = json.loads((tmp_path / "costs.json").read_text())
    # Two rollouts of 16 completions; four optimiser steps, none of which runs the LM.
    assert (costs["reward_calls"], costs["optimizer_steps"]) == (32, 4)
    assert 32 <= costs["generated_tokens"] <= 32 * 8
    assert {"rollout", "reward", "optimise"} <= set(costs["seconds"])


def test_the_optimisation_runs_no_lm_forward(base: LoadedModel, tmp_path: Path) -> None:
    """Eight passes over one rollout feed the LM as many tokens as one pass."""
    counts = []
    for passes in (1, 8):
        found = trainer(base, tmp_path / str(passes), num_iterations=passes, max_steps=2 * passes)
        found.train()
        counts.append((found.ledger.lm_forward_tokens, found.ledger.optimizer_steps))
    assert counts[0][0] == counts[1][0] > 0
    assert (counts[0][1], counts[1][1]) == (2, 16)


def test_a_rollout_that_is_used_up_is_left_alone(base: LoadedModel, tmp_path: Path) -> None:
    """A region so small that the first pass uses it up: the other passes change neither weights nor the optimiser's moments."""
    digests, moments = [], []

    class Watch(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            digests.append(digest(found.model))
            moments.append([state["exp_avg"].sum().item() for state in found.optimizer.state.values()])

    found = trainer(base, tmp_path, num_iterations=4, max_steps=8, max_update_kl=1e-6, callbacks=[Watch()])
    before = digest(found.model)
    found.train()
    assert found.state.global_step == 8 and found.ledger.optimizer_steps == 2
    assert len(set(digests[1:])) == 1 and digests[1] != before
    assert all(each == moments[1] for each in moments[1:])
    line = next(line for line in read_log(tmp_path) if "passes" in line)
    assert line["passes"] == 1.0 and 0 < line["step_kept"] < 1 and line["moved"] <= 1e-6 and line["grad_norm"] > 0


def test_the_candidates_threshold_follows_the_bases_vocabulary(base: LoadedModel, tmp_path: Path) -> None:
    """Tenfold rarer candidates for a hundred times as many tokens. A proxy to start from keeps its own."""
    found = [default_p_t(vocabulary) for vocabulary in (50, 100, 512, 49_152, 262_144)]
    assert found == [0.01, 0.01, 0.0044, 0.00045, 0.0002]
    own = trainer(base, tmp_path / "own", p_t=None)
    vocabulary = base.model.get_input_embeddings().weight.shape[0]
    assert own.model.config.p_t == own.args.p_t == own.args.options()["p_t"] == default_p_t(vocabulary)
    given = trainer(base, tmp_path / "given", p_t=0.02).model
    assert trainer(base, tmp_path / "again", p_t=None, proxy=given).args.p_t == 0.02


def test_the_temperature_is_the_models_own_unless_told(
    base: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It goes into the proxy, which fixes it for whoever uses the proxy."""
    assert trainer(base, tmp_path / "one").model.config.temperature == 1.0
    monkeypatch.setattr(base.model.generation_config, "do_sample", True)
    monkeypatch.setattr(base.model.generation_config, "temperature", 0.6)
    found = trainer(base, tmp_path / "own")
    assert found.model.config.temperature == found.args.temperature == found.args.options()["temperature"] == 0.6
    given = trainer(base, tmp_path / "given", temperature=0.8)
    assert given.model.config.temperature == 0.8
    assert trainer(base, tmp_path / "again", proxy=given.model).args.temperature == 0.8


def test_steps_are_rounded_up_to_whole_rollouts(base: LoadedModel, tmp_path: Path) -> None:
    """2 passes × 2 minibatches: 4 steps a rollout; 5 steps become 8, saved at 4 and 8."""
    found = trainer(base, tmp_path, num_iterations=2, max_steps=5, save_steps=3)
    found.train()
    assert found.state.global_step == 8
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == ["checkpoint-4", "checkpoint-8"]


def test_evaluation_on_held_out_prompts_under_the_same_noise(base: LoadedModel, tmp_path: Path) -> None:
    """eval_reward is logged every eval_steps; two evaluations of one proxy agree, and an untrained one is the base's mean."""
    held_out = Dataset.from_dict({"prompt": ["A cure for my sheep.", "A curse."]})
    found = trainer(base, tmp_path, eval_dataset=held_out, eval_steps=2, learning_rate=0.0)
    first = found.evaluate()
    found.train()
    lines = [line for line in read_log(tmp_path) if "eval_reward" in line]
    assert [line["step"] for line in lines] == [2, 4]
    names = (
        "eval_reward",
        "eval_kl_per_sequence",
        "eval_kl_restriction",
        "eval_mean_length",
        "eval_ended_rate",
        "eval_acceptance",
    )
    assert all(line[name] == pytest.approx(first[name]) for line in lines for name in names)
    assert first["eval_reward"] < 0 < first["eval_mean_length"] <= 8
    with pytest.raises(FrugalignError, match="no eval_dataset"):
        trainer(base, tmp_path).evaluate()


def test_completions_are_logged(base: LoadedModel, tmp_path: Path) -> None:
    trainer(base, tmp_path, log_completions=True).train()
    rows = [json.loads(line) for line in (tmp_path / "completions.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [0] * 4 + [2] * 4
    assert {row["prompt"] for row in rows} == set(ORDERS)
    assert all(row["reward"] == pytest.approx(-len(row["completion"]) / 10) for row in rows)


def mean_reward(folder: Path) -> float:
    return float(next(line["reward"] for line in read_log(folder) if "reward" in line))


@pytest.mark.slow
def test_several_rewards_with_weights(base: LoadedModel, tmp_path: Path) -> None:
    """The first rollout is the same whatever the reward: its mean is 0.5·short + 2·vowels."""
    means = []
    for name, reward, weights in (
        ("short", short, None),
        ("vowels", vowels, None),
        ("both", [short, vowels], [0.5, 2.0]),
    ):
        trainer(base, tmp_path / name, reward, reward_weights=weights, max_steps=2).train()
        means.append(mean_reward(tmp_path / name))
    assert means[2] == pytest.approx(0.5 * means[0] + 2 * means[1])
    assert means[0] < 0 < means[1]


def test_columns_and_message_lists_reach_the_reward(base: LoadedModel, tmp_path: Path) -> None:
    """Messages in, messages out; every other column is repeated for each completion of its row."""
    seen: list[tuple[Any, Any, Any, Any]] = []

    def reward(prompts: Any, completions: Any, label: Any, trainer_state: Any, **_: Any) -> list[float]:
        seen.extend(zip(prompts, completions, label, [trainer_state.global_step] * len(label), strict=True))
        return [float(len(completion[0]["content"])) for completion in completions]

    messages = [[{"role": "user", "content": order}] for order in ORDERS]
    data = Dataset.from_dict({"prompt": messages, "label": ["a", "b", "c", "d"]})
    trainer(base, tmp_path, reward, data).train()
    assert len(seen) == 32 and {entry[3] for entry in seen} == {0, 2}
    for prompt, completion, label, _ in seen:
        assert prompt[0]["content"] == ORDERS["abcd".index(label)]
        assert [message["role"] for message in completion] == ["assistant"]


def test_a_chat_prompt_and_the_same_text_give_the_same_rollout(base: LoadedModel, tmp_path: Path) -> None:
    """The sandbox has a chat template, so a string is one user turn."""
    texts: list[list[str]] = []

    def reward(completions: Any, **_: Any) -> list[float]:
        texts.append([text if isinstance(text, str) else text[0]["content"] for text in completions])
        return [float(len(text)) for text in texts[-1]]

    trainer(base, tmp_path / "a", reward, max_steps=2).train()
    messages = Dataset.from_dict({"prompt": [[{"role": "user", "content": order}] for order in ORDERS]})
    trainer(base, tmp_path / "b", reward, messages, max_steps=2).train()
    assert texts[0] == texts[1]


def test_missing_eos_penalty(base: LoadedModel, tmp_path: Path) -> None:
    """Two tokens never end a reply: every completion is cut, so the mean moves by the whole penalty."""
    for name, penalty in (("without", 0.0), ("with", -5.0)):
        trainer(base, tmp_path / name, max_steps=2, max_new_tokens=2, missing_eos_penalty=penalty).train()
    assert mean_reward(tmp_path / "with") == pytest.approx(mean_reward(tmp_path / "without") - 5.0)


def test_masked_truncated_completions_teach_nothing(base: LoadedModel, tmp_path: Path) -> None:
    """All are cut: nothing is usable, no weight moves; without the mask some do."""
    moved = {}
    for masked in (True, False):
        folder = tmp_path / str(masked)
        found = trainer(base, folder, max_steps=2, max_new_tokens=2, mask_truncated_completions=masked)
        before = [parameter.detach().clone() for parameter in found.model.parameters()]
        found.train()
        moved[masked] = any(
            not torch.equal(old, new) for old, new in zip(before, found.model.parameters(), strict=True)
        )
        line = next(line for line in read_log(folder) if "usable_share" in line)
        assert line["usable_share"] == (0.0 if masked else 1.0)
    assert moved == {True: False, False: True}


@pytest.mark.slow
def test_gae_trains_its_value_head(tmp_path: Path) -> None:
    """The value loss falls to under half of its start on a reward that its head can learn, with the policy held still."""
    found = trainer(
        load_model(sandbox.model),
        tmp_path,
        vowels,
        advantage="gae",
        max_steps=40,
        num_iterations=2,
        learning_rate=1e-2,
        beta=0.0,
    )
    found.train()
    losses = [line["value_loss"] for line in read_log(tmp_path) if "value_loss" in line]
    assert sum(losses[-4:]) < 0.5 * sum(losses[:4])


def test_every_method_of_trainer_that_is_overridden_has_its_signature() -> None:
    """Private methods may change in any version of transformers: this says which one did, before a run goes wrong."""
    expected = {
        "training_step": ["model", "inputs", "num_items_in_batch"],
        "_prepare_inputs": ["inputs"],
        "compute_loss": ["model", "inputs", "return_outputs", "num_items_in_batch"],
        "floating_point_ops": ["inputs"],
        "log": ["logs", "start_time"],
        "evaluate": ["eval_dataset", "ignore_keys", "metric_key_prefix"],
        "get_train_dataloader": [],
        "train": ["resume_from_checkpoint", "trial", "ignore_keys_for_eval"],
        "_get_output_dir": ["trial"],
        "_save": ["output_dir", "state_dict"],
        "_save_checkpoint": ["model", "trial"],
        "_load_from_checkpoint": ["resume_from_checkpoint", "model"],
    }
    for name, parameters in expected.items():
        assert list(inspect.signature(getattr(Trainer, name)).parameters) == ["self", *parameters], name
        assert list(inspect.signature(getattr(ProxyTrainer, name)).parameters) == ["self", *parameters], name
    own = {**vars(WholeCheckpoints), **vars(ProxyTrainer)}
    overridden = {
        name for name, value in own.items() if callable(value) and hasattr(Trainer, name) and name[:2] != "__"
    }
    assert overridden == set(expected)
    # And Trainer still calls them where they are expected to act.
    source = {name: inspect.getsource(getattr(Trainer, name)) for name in ("training_step", "_save_checkpoint")}
    assert "self._prepare_inputs(" in source["training_step"] and "self.compute_loss(" in source["training_step"]
    assert "self._get_output_dir(" in source["_save_checkpoint"]


def test_rewards_are_logged_apart_and_log_themselves(base: LoadedModel, tmp_path: Path) -> None:
    """Two rewards: a mean each; TRL's log_metric goes to the log, its log_extra beside the completions."""

    def chatty(completions: list[Any], log_metric: Any, log_extra: Any, **_: Any) -> list[float | None]:
        log_metric("seen", len(completions))
        log_extra("length", [len(text) for text in completions])
        return [None] + [2.0] * (len(completions) - 1)

    args = ProxyConfig(output_dir=str(tmp_path), max_steps=2, num_iterations=1, max_new_tokens=8, num_generations=4,
                       per_device_train_batch_size=16, p_t=1e-3, logging_steps=2, use_cpu=True, log_completions=True)  # fmt: skip
    ProxyTrainer(base.model, [short, chatty], args, dataset(), processing_class=base.tokenizer).train()
    line = next(line for line in read_log(tmp_path) if "reward" in line)
    assert line["seen"] == 16 and line["rewards/chatty/mean"] == 2.0 and line["rewards/short/mean"] < 0
    entry = json.loads((tmp_path / "completions.jsonl").read_text().splitlines()[0])
    assert entry["length"] == len(entry["completion"])


def test_the_limit_of_the_kl_is_of_the_responses_that_teach(base: LoadedModel, tmp_path: Path) -> None:
    """A reward that applies to one prompt of four: what the others cost at the start of a rollout may stay."""

    def poison_only(prompts: list[Any], completions: list[Any], **_: Any) -> list[float | None]:
        return [
            -len(text) / 10 if len(prompt) > 30 else None for prompt, text in zip(prompts, completions, strict=True)
        ]

    made = trainer(base, tmp_path, poison_only, target_kl=1e-3)
    torch.nn.init.normal_(made.model.query_out.weight)  # far from the base
    made.train()
    found = made._update.region.distances()
    used = torch.cat([batch.positions.sequence for batch in made._update.region.minibatches]).unique()
    assert len(used) == 4
    assert found.moved == pytest.approx(0.0, abs=1e-6) and found.from_base > 0.01
    assert made._update.limits.from_base == found.from_base


def test_gae_with_every_completion_masked_stays_finite(base: LoadedModel, tmp_path: Path) -> None:
    found = trainer(base, tmp_path, advantage="gae", mask_truncated_completions=True, max_new_tokens=2)
    found.train()
    lines = [line for line in read_log(tmp_path) if "value_loss" in line]
    assert lines and all(line["value_loss"] == 0 and line["loss"] == 0 for line in lines)


def test_steps_in_epochs_and_shares(base: LoadedModel, tmp_path: Path) -> None:
    """Four prompts a rollout of two steps: three epochs are six steps; a third of them is one rollout; 0.5 of 6 rounds up to 4."""
    found = trainer(base, tmp_path, max_steps=-1, num_train_epochs=3, save_steps=1 / 3, eval_steps=0.5, eval_dataset=dataset(),
                    num_mini_batches=2)  # fmt: skip
    assert (found.args.max_steps, found.args.save_steps, found.args.eval_steps) == (6, 2, 4)


def test_a_reward_that_cannot_see_the_text_is_warned_of_once(
    base: LoadedModel, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """`len` of a message list is 1: a function for strings gives every answer to messages the same reward."""
    messages = Dataset.from_dict({"prompt": [[{"role": "user", "content": text}] for text in ORDERS]})
    trainer(base, tmp_path, reward=short, data=messages).train()
    said = [text for text in caplog.messages if "the same value" in text]
    assert len(said) == 1 and "'short' gave all 16 responses" in said[0] and "message lists" in said[0]


def test_a_reward_of_the_prompt_alone_is_warned_of(
    base: LoadedModel, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def of_the_prompt(prompts: list[str], **_: Any) -> list[float]:
        return [float(len(prompt)) for prompt in prompts]

    trainer(base, tmp_path, reward=of_the_prompt).train()
    said = [text for text in caplog.messages if "equal rewards for 4 of 4 prompts" in text]
    assert len(said) == 1


def test_a_reward_with_something_to_learn_from_is_not_warned_of(
    base: LoadedModel, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trainer(base, tmp_path, reward=vowels).train()
    assert not [text for text in caplog.messages if "reward" in text]
