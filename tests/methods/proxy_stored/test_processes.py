"""Two processes on one machine against one process with twice the batch: one pass through the base, the same gradients, the same run."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest
import torch
from tests.forked import two_processes
from tests.methods.proxy_stored.two_processes import rank, train

from frugalign.runs.layout import read_log

pytestmark = pytest.mark.slow


def apart(ours: dict[str, list[float]], theirs: dict[str, list[float]]) -> float:
    """The largest difference, as a share of the largest value."""
    assert set(ours) == set(theirs) and ours
    differences = [float((torch.tensor(ours[name]) - torch.tensor(theirs[name])).abs().max()) for name in ours]
    return max(differences) / max(float(torch.tensor(values).abs().max()) for values in ours.values())


@pytest.mark.parametrize("sizes", [{}, {"tp_size": 2}, {"fsdp_size": 2}], ids=["whole", "tensor", "fsdp"])
def test_two_processes_are_one(sizes: dict[str, int], tmp_path: Path) -> None:
    two, one = tmp_path / "two", tmp_path / "one"
    for folder in (one, two):
        folder.mkdir()
    two_processes(partial(rank, two, **sizes), tmp_path)
    alone = train(one, pairs_per_process=8)
    ranks = [json.loads((two / f"rank-{rank}.json").read_text()) for rank in range(2)]
    assert alone["shards"] > 3 and len(alone["computed"]) == alone["shards"]
    if "tp_size" in sizes:  # the processes compute every shard together
        assert ranks[0]["computed"] == ranks[1]["computed"] == alone["computed"]
    else:
        assert sorted(ranks[0]["computed"] + ranks[1]["computed"]) == sorted(alone["computed"]), (
            "shards were computed twice"
        )
        assert ranks[0]["computed"] and ranks[1]["computed"], "one process computed all shards"
    assert alone["tokens"] == ranks[0]["tokens"] == ranks[1]["tokens"]
    assert apart(ranks[0]["weights"], ranks[1]["weights"]) == 0.0, "the processes end apart"
    assert apart(alone["gradients"], ranks[0]["gradients"]) < 1e-4
    assert apart(alone["weights"], ranks[0]["weights"]) < 0.02
    assert ranks[0]["kl"] == ranks[1]["kl"] == pytest.approx(alone["kl"], rel=1e-3)
    logs = [read_log(folder) for folder in (one, two)]
    assert [line["step"] for line in logs[0]] == [line["step"] for line in logs[1]] and len(logs[0]) == 12
    for name in ("loss", "kl", "rewards/margins", "eval_loss", "eval_kl"):
        ours, theirs = (torch.tensor([line[name] for line in log if name in line]) for log in logs)
        assert len(ours) == 6
        torch.testing.assert_close(ours, theirs, atol=0.002, rtol=0.02)
