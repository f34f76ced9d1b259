"""SIGKILL at the worst moments: the resumed run ends bit for bit where one that was never stopped does."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from tests.forked import Forked
from tests.two_layers import two_layers

from frugalign.cli.main import main
from frugalign.runs.layout import read_log

pytestmark = pytest.mark.slow

TIMES = {"train_runtime", "train_samples_per_second", "train_steps_per_second", "eval_runtime"}

REWARD = '''
"""A reward that can kill its own process: KILL=round:STEP, staged:STEP or torn:STEP."""

import os
import signal

import torch

import frugalign.runs.checkpoints as checkpoints

moment, _, step = os.environ.get("KILL", "").partition(":")
publish, save = checkpoints.publish_checkpoint, torch.save


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def publish_or_die(run_dir, at, state, keep):
    if moment == "staged" and at == int(step):
        die()
    publish(run_dir, at, state, keep)


def save_or_die(value, file, *rest, **options):
    if moment == "torn" and f"checkpoint-{step}" in str(file):
        with open(file, "wb") as half:
            half.write(b"half a file")
        die()
    save(value, file, *rest, **options)


checkpoints.publish_checkpoint, torch.save = publish_or_die, save_or_die


def reward(completions, trainer_state, **columns):
    if moment == "round" and trainer_state.global_step == int(step):
        die()
    return [-len(text) / 10 for text in completions]
'''


def metrics(folder: Path) -> list[dict[str, Any]]:
    return [{key: value for key, value in line.items() if key not in TIMES} for line in read_log(folder)]


def counters(folder: Path) -> dict[str, Any]:
    costs = json.loads((folder / "costs.json").read_text())
    return {name: value for name, value in costs.items() if isinstance(value, int)}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, list[int]]]:
    """Twelve steps, at most two a rollout, a checkpoint every four: once whole, and killed in three ways and resumed."""
    folder = tmp_path_factory.mktemp("resume")
    (folder / "killing.py").write_text(REWARD)
    orders = [f"I seek a {what}, keeper." for what in ("draught", "poison", "balm", "curse", "salve", "book", "tea")]
    (folder / "prompts.jsonl").write_text("".join(json.dumps({"prompt": order}) + "\n" for order in orders * 3))
    flags = {
        "model_name_or_path": two_layers(),
        "dataset_name": folder / "prompts.jsonl",
        "reward": f"{folder / 'killing.py'}:reward",
        "max_steps": 12,
        "num_iterations": 2,
        "num_mini_batches": 1,
        "max_update_kl": 0.001,  # some rollouts carry two passes, others one
        "save_steps": 4,
        "logging_steps": 6,  # not the checkpoints' step
        "eval_steps": 4,
        "max_new_tokens": 8,
        "num_generations": 4,
        "per_device_train_batch_size": 16,
        "p_t": 0.001,
        "target_kl": 0.5,
        "use_cpu": "true",
    }
    words = [word for name, value in flags.items() for word in (f"--{name}", str(value))]
    kills = {"whole": "", "between": "round:6", "staged": "staged:8", "torn": "torn:8", "first": "round:2"}
    statuses: dict[str, list[int]] = {}
    for name, kill in kills.items():
        argv = ["proxy", *words, "--output_dir", str(folder / name)]
        statuses[name] = [Forked(partial(main, argv), folder / f"{name}.log", {"KILL": kill}).wait()]
        if kill:
            again = [*argv, "--resume_from_checkpoint", "true"]
            statuses[name].append(Forked(partial(main, again), folder / f"{name}-again.log", {"KILL": ""}).wait())
    return folder, statuses


@pytest.mark.parametrize("how", ["between", "staged", "torn"])
def test_a_killed_run_resumes_bit_for_bit(how: str, runs: tuple[Path, dict[str, list[int]]]) -> None:
    """Killed between checkpoints, with one staged, or with one half written: weights, metrics, β and counters are the whole run's."""
    folder, statuses = runs
    assert statuses["whole"] == [0], (folder / "whole.log").read_text()
    assert statuses[how] == [-9, 0], (folder / f"{how}-again.log").read_text()
    whole, again = folder / "whole", folder / how
    for name in ("model.safetensors", "checkpoint-12/model.safetensors", "checkpoint-12/optimizer.pt"):
        assert (again / name).read_bytes() == (whole / name).read_bytes(), name
    assert metrics(again) == metrics(whole)
    states = [json.loads((run / "checkpoint-12" / "frugalign.json").read_text()) for run in (whole, again)]
    assert states[0]["kl"] == states[1]["kl"] and states[0]["kl"]["highest"] > 0
    assert counters(again) == counters(whole)
    assert not (again / ".frugalign-saving").exists()
    assert sorted(path.name for path in again.glob("checkpoint-*")) == ["checkpoint-12", "checkpoint-8"]


def test_the_whole_run_is_worth_comparing(runs: tuple[Path, dict[str, list[int]]]) -> None:
    """β moved, the weights moved, some passes were left out, and the lines of the metrics differ from each other."""
    folder, _ = runs
    lines = [line for line in metrics(folder / "whole") if "reward" in line]
    assert [line["step"] for line in lines] == [6, 12]
    assert len({line["kl"] for line in lines}) == 2 and len({line["beta"] for line in lines}) == 2
    assert 1 < sum(line["passes"] for line in lines) / 2 < 2, [line["passes"] for line in lines]
    early, late = (folder / "whole" / f"checkpoint-{step}" / "model.safetensors" for step in (8, 12))
    assert early.read_bytes() != late.read_bytes()


def test_nothing_to_resume_from_is_said(runs: tuple[Path, dict[str, list[int]]]) -> None:
    """Killed before its first checkpoint."""
    folder, statuses = runs
    assert statuses["first"] == [-9, 2]
    said = (folder / "first-again.log").read_text().strip().splitlines()[-1]
    assert said == f"frugalign: There is no checkpoint in {folder / 'first'} to resume from."
