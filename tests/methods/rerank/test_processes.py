"""Two processes on one machine against one process with twice the batch: the same samples, rankings and gradients, the same run."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest
import torch
from tests.forked import two_processes
from tests.methods.rerank.two_processes import rank, train

from frugalign.data.groups import read_groups
from frugalign.runs.layout import read_log

pytestmark = pytest.mark.slow


def apart(ours: dict[str, list[float]], theirs: dict[str, list[float]]) -> float:
    """The largest difference, as a share of the largest value."""
    assert set(ours) == set(theirs) and ours
    differences = [float((torch.tensor(ours[name]) - torch.tensor(theirs[name])).abs().max()) for name in ours]
    return max(differences) / max(float(torch.tensor(values).abs().max()) for values in ours.values())


@pytest.mark.parametrize(
    ("carrier", "sizes"),
    [("lora", {}), ("proxy", {}), ("proxy", {"fsdp_size": 2}), ("proxy", {"tp_size": 2})],
    ids=["lora", "proxy", "fsdp", "tensor"],
)
def test_two_processes_are_one(carrier: str, sizes: dict[str, int], tmp_path: Path) -> None:
    two, one = tmp_path / "two", tmp_path / "one"
    two.mkdir()
    two_processes(partial(rank, two, carrier, **sizes), tmp_path)
    alone = train(one, 8, carrier)
    assert alone["world_size"] == 1
    ranks = [json.loads((two / f"rank-{rank}.json").read_text()) for rank in range(2)]
    assert apart(ranks[0]["weights"], ranks[1]["weights"]) == 0.0, "the processes end apart"
    assert ranks[0]["probes"] == ranks[1]["probes"]
    first = [read_groups(folder / "groups" / "epoch-000.jsonl") for folder in (one, two)]
    assert first[0].completions == first[1].completions and len(first[0]) == len(set(map(str, first[0].prompts)))
    torch.testing.assert_close(torch.tensor(first[0].rewards), torch.tensor(first[1].rewards), atol=1e-4, rtol=1e-4)
    assert apart(alone["gradients"], ranks[0]["gradients"]) < 1e-4
    assert apart(alone["weights"], ranks[0]["weights"]) < 0.02
    logs = [[line for line in read_log(folder) if "loss" in line] for folder in (one, two)]
    assert len(logs[0]) == len(logs[1]) > 6
    for name in ("loss", "confidence/mean", "rewards/margins"):
        ours, theirs = (torch.tensor([line[name] for line in log]) for log in logs)
        torch.testing.assert_close(ours, theirs, atol=0.01, rtol=0.02)
    assert logs[1][-1]["step"] == logs[0][-1]["step"]
