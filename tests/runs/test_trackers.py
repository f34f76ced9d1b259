"""Trackers by `report_to`: what they are told of a proxy's training, of rounds, and of a fit; with stand-ins of the libraries."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tests.methods.proxy_rlhf.small_trainer import ORDERS, trainer
from tests.runs.tracker_stand_ins import NAMES, stand_in
from tests.two_layers import two_layers
from transformers import TrainerControl, TrainerState, TrainingArguments

from frugalign.engines.loading import load_model
from frugalign.runs.layout import read_log
from frugalign.runs.trackers import PartOfARun, Trackers, log_table


def arguments(tmp_path: Path, report_to: str) -> TrainingArguments:
    return TrainingArguments(str(tmp_path), report_to=report_to, use_cpu=True)


@pytest.mark.parametrize("name", NAMES)
def test_a_training_is_one_run_with_its_log_and_samples(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A table for every log line, of the newest rollout, with the rewards and the KL that `completions.jsonl` has."""
    found = stand_in(name, monkeypatch)
    base = load_model(two_layers())
    run = trainer(base, tmp_path, report_to=name, log_completions=True, num_iterations=2, logging_steps=4, max_steps=8)
    run.train()
    assert found.runs == 1 and found.ended == (name != "wandb"), "wandb ends with the process"
    logged = [(line["step"], line["reward"], line["kl"]) for line in read_log(tmp_path) if "reward" in line]
    assert [(step, each["reward"], each["kl"]) for step, each in found.scalars if "reward" in each] == logged
    assert [step for step, *_ in logged] == [4, 8]
    rows = [json.loads(line) for line in (tmp_path / "completions.jsonl").read_text().splitlines()]
    assert len(found.tables) == 2
    for table, number in zip(found.tables, (0, 4), strict=True):
        assert list(table) == ["step", "prompt", "completion", "reward", "kl"]
        mine = [row for row in rows if row["step"] == number]
        assert table["completion"] == [row["completion"] for row in mine] and set(table["prompt"]) == set(ORDERS)
        assert table["kl"] == [row["kl"] for row in mine] and table["step"] == [number + 4] * 4
    assert found.config["num_generations"] == 4 and found.config["model_type"] == "frugalign_proxy"


def test_samples_stay_here_unless_they_are_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = stand_in("trackio", monkeypatch)
    trainer(load_model(two_layers()), tmp_path, report_to="trackio").train()
    assert found.scalars and not found.tables


def test_nobody_is_told_anything_by_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recorded = [stand_in(name, monkeypatch) for name in NAMES]
    trainer(load_model(two_layers()), tmp_path, log_completions=True).train()
    assert not any(each.runs or each.scalars or each.tables for each in recorded)


@pytest.mark.parametrize("name", NAMES)
def test_several_trainings_are_one_run_with_one_count_of_steps(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = stand_in(name, monkeypatch)
    trackers = Trackers(arguments(tmp_path, name))
    trackers.begin(SimpleNamespace(config=None))
    trackers.log({"eval_reward": 0.25}, 0)
    for before in (0, 6):
        part = PartOfARun(trackers, before)
        for step in (3, 6):
            part.on_log(trackers.args, TrainerState(global_step=step), TrainerControl(), logs={"loss": float(step)})
        part.on_log(trackers.args, TrainerState(global_step=6), TrainerControl(), logs={"train_loss": 1.0})
    trackers.log_table([{"prompt": [{"role": "user", "content": "Hi"}], "completion": "Ho", "reward": None}], 12)
    trackers.end()
    assert found.runs == 1 and found.steps == [0, 3, 6, 9, 12]
    (table,) = found.tables
    assert table["prompt"] == ['[{"role": "user", "content": "Hi"}]'] and table["step"] == [12]


def test_a_table_of_tensorboard_is_markdown() -> None:
    written: list[tuple[str, str, int]] = []

    class TensorBoardCallback:
        tb_writer = SimpleNamespace(add_text=lambda name, text, step: written.append((name, text, step)))

    callback: Any = TensorBoardCallback()
    log_table([callback, SimpleNamespace()], [{"step": 0, "completion": "a|b\nc", "reward": 0.5}], 7)  # type: ignore[list-item]
    ((name, text, step),) = written
    assert (name, step) == ("completions", 7)
    assert text.splitlines() == ["| step | completion | reward |", "| --- | --- | --- |", "| 7 | a\\|b c | 0.5 |"]


@pytest.mark.slow
def test_rounds_are_one_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps count over the rounds. Their rewards, evaluations and some responses are told as well."""
    from tests.methods.psle.runs import command, make_prompt_files

    from frugalign.cli.main import main

    found = stand_in("mlflow", monkeypatch)
    monkeypatch.chdir(tmp_path)
    make_prompt_files()
    assert main(command(report_to="mlflow", log_completions="true", eval_prompts=4)) == 0
    assert found.runs == found.ended == 1
    steps = [
        json.loads(Path(f"run/round-00{number}/manifest.json").read_text())["optimizer_steps"] for number in (0, 1)
    ]
    losses = [step for step, values in found.scalars if "loss" in values]
    assert losses == list(range(1, sum(steps) + 1)), "logging_steps is 1"
    assert [step for step, values in found.scalars if "eval_reward" in values] == [0, steps[0], sum(steps)]
    assert [(step, values["round"]) for step, values in found.scalars if "round" in values] == [(0, 0), (steps[0], 1)]
    manifest = json.loads(Path("run/round-000/manifest.json").read_text())
    sampled = next(values for _, values in found.scalars if "reward_guided" in values)
    assert sampled["reward_guided"] == pytest.approx(manifest["rewards"]["guided"]["mean"])
    assert [table["step"][0] for table in found.tables] == [0, steps[0]]
    assert found.tables[0]["sampled"] == 2 * (2 * ["plainly"] + 2 * ["under principles"])


@pytest.mark.slow
def test_a_fit_is_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from frugalign.cli.main import main
    from frugalign.sandbox.cached import sample_pairs

    found = stand_in("trackio", monkeypatch)
    monkeypatch.chdir(tmp_path)
    Path("pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in sample_pairs("train", 120)))
    words = (
        f"reward --model_name_or_path {two_layers()} --dataset_name pairs.jsonl --output_dir reward --cache_dir states"
    )
    assert (
        main([*words.split(), "--layers", "1", "--n_shuffles", "0", "--max_iterations", "9", "--report_to", "trackio"])
        == 0
    )
    report = json.loads(Path("reward/reward_report.json").read_text())
    assert found.runs == found.ended == 1
    history = [[values["loss"], values["eval/loss"]] for _, values in found.scalars if "loss" in values]
    assert history == report["fit"]["history"]
    last = found.scalars[-1][1]
    assert last == {"eval/accuracy": report["test"]["accuracy"]["mean"]}
