"""Two processes on one machine against one process with twice the batch: the same run."""

from __future__ import annotations

import json
import os
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.forked import two_processes
from tests.methods.proxy_rlhf import two_processes as script
from tests.two_layers import two_layers

from frugalign.engines.fingerprints import fingerprint
from frugalign.engines.loading import load_model
from frugalign.methods.proxy_rlhf.config import ProxyConfig
from frugalign.runs.layout import read_log

pytestmark = pytest.mark.slow


def curve(folder: Path, name: str = "reward") -> torch.Tensor:
    return torch.tensor([line[name] for line in read_log(folder) if "reward" in line])


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], list[dict[str, Any]]]:
    """Two processes of 8 completions; one process of 16."""
    folder = tmp_path_factory.mktemp("processes")
    two = folder / "two"
    two.mkdir()
    two_processes(partial(script.rank, two), folder)
    ranks = [json.loads((two / f"rank-{rank}.json").read_text()) for rank in (0, 1)]
    return folder, script.train(folder / "one-0", completions=16), ranks


def test_processes_without_an_accelerator_see_each_other(tmp_path: Path) -> None:
    """torchrun sets no variable of accelerate, which then takes each process for the only one on a machine without a GPU."""

    def see() -> None:
        del os.environ["ACCELERATE_USE_CPU"]
        assert ProxyConfig(output_dir=str(tmp_path), max_steps=1).world_size == 2

    two_processes(see, tmp_path)


def test_two_processes_roll_out_what_one_does(runs: tuple[Path, dict[str, Any], list[dict[str, Any]]]) -> None:
    """Half of the prompts each: together, in order, the completions of one process."""
    _, one, ranks = runs
    assert [rank["world_size"] for rank in ranks] == [2, 2] and one["world_size"] == 1
    both = [tuple(pair) for rank in ranks for pair in rank["rollout"]]
    assert both == one["rollout"] and len(both) == 16
    assert ranks[0]["rollout"] != ranks[1]["rollout"]


def test_costs_are_those_of_all_processes(runs: tuple[Path, dict[str, Any], list[dict[str, Any]]]) -> None:
    """Ten rollouts of sixteen completions and one to evaluate, whoever made them; steps are not multiplied."""
    folder, _, _ = runs
    two, one = (json.loads((folder / name / "costs.json").read_text()) for name in ("two", "one-0"))
    assert two["reward_calls"] == one["reward_calls"] == 161
    assert two["optimizer_steps"] == one["optimizer_steps"] == 20
    assert abs(two["generated_tokens"] - one["generated_tokens"]) < 0.2 * one["generated_tokens"]


def test_gradients_of_the_first_step_agree(runs: tuple[Path, dict[str, Any], list[dict[str, Any]]]) -> None:
    """Averaged over the processes, to 1e-5; and all processes end with the same weights."""
    _, one, ranks = runs
    assert set(one["gradients"]) == set(ranks[0]["gradients"])
    for name, expected in one["gradients"].items():
        for rank in ranks:
            torch.testing.assert_close(torch.tensor(rank["gradients"][name]), torch.tensor(expected), atol=1e-5, rtol=0)
    assert max(abs(value) for values in one["gradients"].values() for value in values) > 1e-3
    assert ranks[0]["weights"] == ranks[1]["weights"]


def test_a_process_without_prompts_takes_part_in_the_evaluation(
    runs: tuple[Path, dict[str, Any], list[dict[str, Any]]],
) -> None:
    """One prompt for two processes: it does not hang, and both know the numbers of the one that had it."""
    _, one, ranks = runs
    assert ranks[0]["evaluation"] == ranks[1]["evaluation"]
    assert ranks[0]["evaluation"]["eval_reward"] < 0
    assert set(ranks[0]["evaluation"]) == set(one["evaluation"])


def test_the_reward_curve_is_inside_the_spread_of_seeds(
    runs: tuple[Path, dict[str, Any], list[dict[str, Any]]],
) -> None:
    """Ten logged rounds: between the lowest and the highest of three seeds at every one, and the first round's KL is one process's."""
    folder, _, _ = runs
    for seed in (1, 2):
        script.train(folder / f"one-{seed}", completions=16, seed=seed)
    two = curve(folder / "two")
    seeds = torch.stack([curve(folder / f"one-{seed}") for seed in range(3)])
    assert two.shape == (10,) and seeds.shape == (3, 10)
    assert bool((two >= seeds.amin(0) - 1e-6).all() and (two <= seeds.amax(0) + 1e-6).all()), (two, seeds)
    assert float((seeds.amax(0) - seeds.amin(0)).max()) > 0.05
    for name in ("kl", "loss", "completion_length"):
        assert float(curve(folder / "two", name)[0]) == pytest.approx(float(curve(folder / "one-0", name)[0]), abs=1e-4)


@pytest.mark.parametrize(("size", "completions"), [("tp_size", 16), ("fsdp_size", 8)])
def test_a_base_over_two_processes_is_the_base(
    size: str, completions: int, runs: tuple[Path, dict[str, Any], list[dict[str, Any]]], tmp_path: Path
) -> None:
    """The same completions, gradients and weights as with a whole base on one process. Tensor-parallel processes roll out the same rows."""
    folder, one, _ = runs
    two_processes(partial(script.spread_rank, tmp_path, size, completions), tmp_path)
    ranks = [json.loads((tmp_path / f"rank-{rank}.json").read_text()) for rank in (0, 1)]
    base = load_model(two_layers())
    assert ranks[0]["base"] == ranks[1]["base"] == fingerprint(base.model, base.tokenizer, name=base.name).to_dict()
    parts = [[tuple(pair) for pair in rank["rollout"]] for rank in ranks]
    assert one["rollout"] == (parts[0] if size == "tp_size" else parts[0] + parts[1])
    assert (parts[0] == parts[1]) == (size == "tp_size")
    for name, expected in one["gradients"].items():
        torch.testing.assert_close(torch.tensor(ranks[0]["gradients"][name]), torch.tensor(expected), atol=1e-5, rtol=0)
    largest = max(abs(value) for values in one["weights"].values() for value in values)
    for name, expected in one["weights"].items():
        torch.testing.assert_close(
            torch.tensor(ranks[0]["weights"][name]), torch.tensor(expected), atol=0.01 * largest, rtol=0
        )
    assert ranks[0]["weights"] == ranks[1]["weights"] == ranks[0]["resumed"]
    assert ranks[0]["evaluation"] == ranks[1]["evaluation"]
    assert ranks[0]["evaluation"]["eval_reward"] == pytest.approx(one["evaluation"]["eval_reward"], abs=0.05)
    costs = [json.loads((place / "costs.json").read_text()) for place in (tmp_path, folder / "one-0")]
    for name in ("reward_calls", "optimizer_steps", "base_parameters"):
        assert costs[0][name] == costs[1][name]
    assert costs[0]["generated_tokens"] == pytest.approx(costs[1]["generated_tokens"], rel=0.02)
