"""How `ProxyTrainer` stops, what it refuses, and how it begins again."""

from __future__ import annotations

import errno
import pickle
import resource
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from tests.methods.proxy_rlhf.small_trainer import dataset, digest, short, trainer
from tests.two_layers import two_layers

from frugalign.base.errors import FrugalignError
from frugalign.engines.loading import LoadedModel, load_model
from frugalign.methods.proxy_rlhf import ProxyConfig, ProxyTrainer
from frugalign.proxy.network import new_proxy
from frugalign.runs.layout import read_log


@pytest.fixture(scope="module")
def base() -> LoadedModel:
    return load_model(two_layers())


def test_a_failing_reward_can_skip_its_rows(base: LoadedModel, tmp_path: Path) -> None:
    """Row by row it is None for one prompt of four: 4 of 16 rows are lost, the rest trains."""

    def reward(prompts: Any, completions: Any, **_: Any) -> list[float]:
        if any("poison" in prompt for prompt in prompts):
            raise ValueError("no words for it")
        return short(completions)

    found = trainer(base, tmp_path, reward, reward_on_error="skip")
    found.train()
    lines = [line for line in read_log(tmp_path) if "reward" in line]
    assert [line["reward_skipped"] for line in lines] == [4.0, 4.0]
    assert [line["usable_share"] for line in lines] == [0.75, 0.75]
    assert all(parameter.isfinite().all() for parameter in found.model.parameters())


def raising(**_: Any) -> list[float]:
    raise RuntimeError("out of tea")


def not_a_number(completions: Any, **_: Any) -> list[float]:
    return [0.0, 1.0, float("nan")] + [0.0] * (len(completions) - 3)


def too_few(completions: Any, **_: Any) -> list[float]:
    return [0.0]


def in_the_second_round(completions: Any, trainer_state: Any, **_: Any) -> list[float]:
    return short(completions) if trainer_state.global_step == 0 else not_a_number(completions)


@pytest.mark.parametrize(
    ("reward", "words"),
    [
        (raising, ["'raising'", "raised RuntimeError (out of tea)", "batch 0", "row 0"]),
        (not_a_number, ["'not_a_number'", "NaN", "batch 0", "row 2"]),
        (too_few, ["'too_few'", "1 values for 16 completions", "batch 0", "rows 0 to 15"]),
        (in_the_second_round, ["'in_the_second_round'", "NaN", "batch 1", "row 2"]),
    ],
)
def test_a_failing_reward_stops_the_run(reward: Any, words: list[str], base: LoadedModel, tmp_path: Path) -> None:
    with pytest.raises(FrugalignError) as raised:
        trainer(base, tmp_path, reward).train()
    assert all(word in str(raised.value) for word in words) and "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("reward", "words"), [([], "No reward"), (3.5, "callable or a string"), ([short, short], "Two rewards are called")]
)
def test_what_is_no_reward(reward: Any, words: str, base: LoadedModel, tmp_path: Path) -> None:
    with pytest.raises(FrugalignError, match=words):
        trainer(base, tmp_path, reward).train()


def test_a_model_without_its_tokenizer(base: LoadedModel, tmp_path: Path) -> None:
    with pytest.raises(FrugalignError, match="processing_class"):
        ProxyTrainer(base.model, short, ProxyConfig(output_dir=str(tmp_path)), dataset())


def test_a_threshold_that_leaves_no_choice_is_said(base: LoadedModel, tmp_path: Path) -> None:
    with pytest.raises(FrugalignError, match="lower p_t"):
        trainer(base, tmp_path, p_t=0.9999, tail="drop", max_new_tokens=2).train()


@pytest.mark.slow
@pytest.mark.parametrize("real", [False, True])
@pytest.mark.parametrize("what", ["optimizer", "weights"])
def test_a_full_disk_leaves_the_older_checkpoint_and_the_run_goes_on_from_it(
    what: str, real: bool, base: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A write of checkpoint-4 fails: one sentence; checkpoint-2 is whole, and a run resumed from it ends as one never stopped.

    `real`: the system itself stops a file at 4 kB, which torch and safetensors report in errors of their own.
    """
    whole = trainer(base, tmp_path / "whole", save_steps=2, max_steps=6)
    whole.train()
    found = trainer(base, tmp_path / "full", save_steps=2, max_steps=6)

    with monkeypatch.context() as patched, pytest.raises(FrugalignError) as raised:
        place = "transformers.trainer.Trainer._save_optimizer_and_scheduler"
        if what == "weights":
            place = "frugalign.proxy.network.ProxyModel.save_pretrained"
        original: Any = getattr(*_resolve(place))

        def at_step_four(self: Any, *arguments: Any, **options: Any) -> Any:
            if found.state.global_step != 4:
                return original(self, *arguments, **options)
            if not real:
                raise OSError(errno.ENOSPC, "No space left on device", "optimizer.pt")
            limits = resource.getrlimit(resource.RLIMIT_FSIZE)
            resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
            try:
                return original(self, *arguments, **options)
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, limits)

        patched.setattr(place, at_step_four)
        found.train()
    reason = "no space is left on the disk"
    if real:
        reason = "File too large" if what == "weights" else "a file could not be written whole; is the disk full?"
    assert str(raised.value) == f"Cannot write {tmp_path / 'full' / 'checkpoint-4'}: {reason}."
    assert [path.name for path in (tmp_path / "full").glob("checkpoint-*")] == ["checkpoint-2"]
    again = trainer(base, tmp_path / "full", save_steps=2, max_steps=6)
    again.train(resume_from_checkpoint=str(tmp_path / "full" / "checkpoint-2"))
    assert digest(again.model) == digest(whole.model)
    assert again.ledger.reward_calls == whole.ledger.reward_calls


def _resolve(place: str) -> tuple[Any, str]:
    import importlib

    module, owner, name = place.rsplit(".", 2)
    return getattr(importlib.import_module(module), owner), name


def test_a_target_below_the_cost_of_the_restriction_is_said(
    base: LoadedModel, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """At p_t = 0.3 the restriction alone costs more than a thousandth of a nat; with the tail kept it costs nothing."""
    trainer(base, tmp_path / "a", p_t=0.3, tail="drop", target_kl=1e-3, max_steps=2).train()
    assert "lower p_t" in caplog.text
    caplog.clear()
    trainer(base, tmp_path / "b", p_t=0.3, target_kl=1e-3, max_steps=2).train()
    assert "lower p_t" not in caplog.text


@pytest.mark.slow
def test_an_interrupted_run_resumed_in_the_same_process_is_the_uninterrupted_one(
    base: LoadedModel, tmp_path: Path
) -> None:
    """The reward of round 2 is interrupted, as in a notebook: nothing of that round is left over."""
    options: dict[str, Any] = {"save_steps": 2, "max_steps": 8, "lr_scheduler_type": "constant"}
    whole = trainer(base, tmp_path / "whole", **options)
    whole.train()
    calls: list[int] = []

    def once(completions: list[Any], **_: Any) -> list[float]:
        calls.append(len(completions))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return short(completions)

    found = trainer(base, tmp_path / "run", once, **options)
    with pytest.raises(KeyboardInterrupt):
        found.train()
    found.train(resume_from_checkpoint=True)
    assert len(calls) == 5
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, found.model.state_dict()[name]), name


def test_a_checkpoint_is_not_resumed_with_another_reward_or_other_prompts(base: LoadedModel, tmp_path: Path) -> None:
    """The two halves would be no run; the first one's names may be others, what they stand for not."""
    trainer(base, tmp_path, save_steps=2, max_steps=2).train()

    def other(completions: list[Any], **_: Any) -> list[float]:
        return [0.0] * len(completions)

    prompts = Dataset.from_dict({"prompt": dataset()["prompt"][::-1]})
    for again, words in (
        (trainer(base, tmp_path, other), "rewards \\['short'\\], not \\['other'\\]"),
        (trainer(base, tmp_path, data=prompts), "was made with other prompts: resume"),
    ):
        with pytest.raises(FrugalignError, match=words):
            again.train(resume_from_checkpoint=True)
    assert trainer(base, tmp_path).train(resume_from_checkpoint=True).global_step == 4


def scaled(scale: float) -> Any:
    def reward(completions: list[Any], **_: Any) -> list[float]:
        return [-scale * len(text) for text in completions]

    return reward


CHANGES: list[dict[str, Any]] = [
    {"weight_decay": 0.1},
    {"optim": "sgd"},
    {"adam_beta2": 0.9},
    {"max_grad_norm": 0.5},
    {"warmup_steps": 3},
    {"lr_scheduler_type": "cosine"},
    {"adam_epsilon": 1e-3},
]


def test_a_checkpoint_is_not_resumed_under_other_settings_rewards_or_columns(base: LoadedModel, tmp_path: Path) -> None:
    """Settings of transformers as ours; a reward of the same name that does something else; a column that rewards read."""
    labels = dataset(label=["a", "b", "c", "d"])
    trainer(base, tmp_path, scaled(1.0), labels, save_steps=2, max_steps=2).train()

    def refusal(*given: Any, **options: Any) -> str:
        with pytest.raises(FrugalignError) as error:
            trainer(base, tmp_path, *given, **options).train(resume_from_checkpoint=True)
        return str(error.value)

    for change in CHANGES:
        name = next(iter(change))
        assert f"was made with {name} " in refusal(scaled(1.0), labels, **change), name
    assert "was made with another reward 'reward' (its code" in refusal(scaled(2.0), labels)
    assert "was made with other prompts" in refusal(scaled(1.0), dataset(label=["a", "b", "c", "e"]))
    assert "was made with other prompts" in refusal(scaled(1.0), dataset())
    free = {"logging_steps": 1, "save_total_limit": 1, "report_to": "none"}
    assert trainer(base, tmp_path, scaled(1.0), labels, **free).train(resume_from_checkpoint=True).global_step == 4


def test_no_token_and_no_pickle_of_the_arguments_is_written(base: LoadedModel, tmp_path: Path) -> None:
    found = trainer(base, tmp_path, save_steps=2, hub_token="hf_secret")
    found.train()
    found.save_model(str(tmp_path / "saved"))
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {"checkpoint-4", "saved"} <= {path.parent.name for path in files}
    assert not [path for path in files if path.suffix == ".bin" or b"hf_secret" in path.read_bytes()]
    assert found.args.hub_token == "hf_secret" and b"hf_secret" not in pickle.dumps(found.args)


def test_a_run_whose_first_round_failed_begins_again(base: LoadedModel, tmp_path: Path) -> None:
    fails = [True]

    def flaky(completions: list[Any], **_: Any) -> list[float]:
        if fails.pop() if fails else False:
            raise RuntimeError("the judge is away")
        return short(completions)

    found = trainer(base, tmp_path, flaky)
    with pytest.raises(FrugalignError, match="the judge is away"):
        found.train()
    assert found.train().global_step == 4


def test_a_given_proxy_must_be_what_the_options_say(base: LoadedModel, tmp_path: Path) -> None:
    """Another objective or temperature, a missing value head, another base: one sentence each."""
    args = ProxyConfig(output_dir=str(tmp_path), use_cpu=True, p_t=0.01)
    for has in ({"objective": "sequential"}, {"temperature": 0.7}, {"value_head": True}, {"p_t": 0.1}):
        proxy = new_proxy(base.model, args.network() | has)
        with pytest.raises(FrugalignError, match=f"The given proxy has {next(iter(has))}"):
            ProxyTrainer(base.model, short, args, dataset(), processing_class=base.tokenizer, proxy=proxy)
    proxy = new_proxy(base.model, args.network())
    proxy.config.base = trainer(base, tmp_path).model.config.base | {"weights": "another"}
    with pytest.raises(FrugalignError, match="The given proxy was trained on"):
        ProxyTrainer(base.model, short, args, dataset(), processing_class=base.tokenizer, proxy=proxy)


def test_options_of_a_base_reach_a_named_one(tmp_path: Path) -> None:
    args = ProxyConfig(output_dir=str(tmp_path), use_cpu=True, adapter=str(tmp_path / "absent"))
    with pytest.raises(FrugalignError, match="No adapter in"):
        ProxyTrainer(two_layers(), short, args, dataset())
