"""`frugalign rerank`: from pairs to an adapter or a model, resumed where it was stopped; and what stops it, in one sentence."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from tests.methods.rerank.random_reward import random_probes
from tests.two_layers import two_layers

from frugalign.cli.main import main
from frugalign.rewards.representation.network import load_probes
from frugalign.sandbox.cached import sample_pairs


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pairs, and a reward of random probes: what is tested here is the run, not what it learns."""
    monkeypatch.chdir(tmp_path)
    Path("pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in sample_pairs("train", 40)))
    random_probes().save_pretrained("reward")


def command(**flags: Any) -> list[str]:
    given = {
        "model_name_or_path": two_layers(),
        "dataset_name": "pairs.jsonl",
        "reward": "reward",
        "output_dir": "run",
        "max_steps": 4,
        "per_device_train_batch_size": 4,
        "logging_steps": 2,
        "learning_rate": 0.001,
        "use_cpu": "true",
    } | flags
    return [
        "rerank",
        *(word for name, value in given.items() if value is not None for word in (f"--{name}", str(value))),
    ]


@pytest.mark.slow
def test_pairs_become_an_adapter_that_evaluate_takes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(command(eval_steps=2)) == 0
    assert "--adapter run" in capsys.readouterr().out
    names = {path.name for path in Path("run").iterdir()}
    assert names >= {
        "adapter_model.safetensors",
        "README.md",
        "config.yaml",
        "metrics.jsonl",
        "costs.json",
        "tokenizer.json",
    }
    lines = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    assert any("confidence/mean" in line for line in lines) and any("eval_loss" in line for line in lines)
    Path("prompts.jsonl").write_text(json.dumps({"prompt": "A balm."}) + "\n")
    Path("my.py").write_text("def short(completions, **_):\n    return [-float(len(text)) for text in completions]\n")
    data = [
        "--dataset_name",
        "prompts.jsonl",
        "--reward",
        "my.py:short",
        "--output_dir",
        "seen",
        "--max_new_tokens",
        "8",
    ]
    assert main(["evaluate", "--model_name_or_path", two_layers(), "--adapter", "run", *data]) == 0
    assert json.loads(Path("seen/metrics.json").read_text())["kl_per_sequence"]["mean"] >= 0
    assert main(command()) == 2
    assert "holds an earlier run" in capsys.readouterr().err


@pytest.mark.slow
def test_every_weight_can_be_trained(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(command(train="full", learning_rate=1e-4)) == 0
    assert "--policy run" in capsys.readouterr().out
    costs = json.loads(Path("run/costs.json").read_text())
    assert costs["trainable_parameters"] == costs["base_parameters"]
    assert costs["optimizer_steps"] == 4 and costs["lm_forward_tokens"] > 0


@pytest.mark.slow
def test_a_step_of_two_batches_is_one_step(capsys: pytest.CaptureFixture[str]) -> None:
    """The ledger counts optimiser steps, and what both models read: twice the tokens of the same batches once."""
    assert main(command(gradient_accumulation_steps=2, per_device_train_batch_size=2)) == 0
    costs = json.loads(Path("run/costs.json").read_text())
    found = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    tokens = max(line["num_tokens"] for line in found if "num_tokens" in line)
    assert costs["optimizer_steps"] == 4 and costs["lm_forward_tokens"] == 2 * tokens
    capsys.readouterr()


@pytest.mark.slow
def test_a_run_that_was_stopped_ends_as_the_whole_one(capsys: pytest.CaptureFixture[str]) -> None:
    """Its last checkpoint and its artefact are gone, as after a kill: resumed from the one before, bit for bit."""
    assert main(command(save_steps=2)) == 0
    whole = load_file("run/adapter_model.safetensors")
    Path("run/adapter_model.safetensors").unlink()
    shutil.rmtree("run/checkpoint-4")
    assert main(command(save_steps=2, resume_from_checkpoint="true")) == 0
    again = load_file("run/adapter_model.safetensors")
    assert set(again) == set(whole) and all(torch.equal(again[name], whole[name]) for name in whole)
    assert main(command(save_steps=2, resume_from_checkpoint="true", beta=0.5)) == 2
    assert "beta 0.1, not 0.5" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"reward": None}, "--reward is missing"),
        ({"dataset_name": None}, "--dataset_name is missing"),
        ({"reward": "./nothing"}, "./nothing"),
        ({"beta": 0}, "beta is 0"),
        ({"confidence_floor": 2}, "confidence_floor is 2"),
        ({"loss_type": "ipo"}, "loss_type"),
        ({"dataset_name": "frugalign.sandbox:prompts"}, "chosen"),
        ({"model_name_or_path": "./nothing"}, "./nothing"),
    ],
)
def test_a_mistake_is_one_sentence(flags: dict[str, Any], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(command(**flags)) == 2
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("frugalign: ")]
    assert len(said) == 1 and words in said[0]


def test_a_reward_of_another_model_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    probes = load_probes("reward")
    probes.config.base["weights"] = "another"
    probes.save_pretrained("reward")
    assert main(command()) == 2
    assert "was trained on" in capsys.readouterr().err


@pytest.mark.slow
def test_the_config_of_a_run_is_the_whole_one_and_goes_on(capsys: pytest.CaptureFixture[str]) -> None:
    """A length that was given, and what is TRL's, are in it; resumed by it, the run is the same one."""
    assert main(command(save_steps=2, max_length=60, weight_decay=0.1)) == 0
    settings = yaml.safe_load(Path("run/config.yaml").read_text())
    assert (settings["max_length"], settings["weight_decay"], settings["use_cpu"]) == (60, 0.1, True)
    assert not {"resume_from_checkpoint", "overwrite_output_dir"} & set(settings)
    whole = load_file("run/adapter_model.safetensors")
    shutil.rmtree("run/checkpoint-4")
    Path("run/adapter_model.safetensors").unlink()
    assert main(["rerank", "--config", "run/config.yaml", "--resume_from_checkpoint", "true"]) == 0
    again = load_file("run/adapter_model.safetensors")
    assert all(torch.equal(again[name], whole[name]) for name in whole)
    capsys.readouterr()
