"""A base that several processes hold together, against the same base in one: what is read of it, and what is refused."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.engines.spread import measured, rank, read, untied
from tests.forked import two_processes
from transformers import GPT2Config, LlamaConfig

from frugalign.base.errors import FrugalignError
from frugalign.engines.sharding import spread
from frugalign.options.groups import Spread
from frugalign.runs.layout import METRICS_FILE


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[str, Any], dict[str, Any]]:
    """The base, what one process reads of it, and what it measures."""
    folder = tmp_path_factory.mktemp("alone")
    base = untied(folder / "base")
    return base, json.loads(json.dumps(read(base))), measured(folder)


@pytest.mark.slow
@pytest.mark.parametrize(("size", "number"), [("tp_size", 2), ("fsdp_size", 2), ("tp_size", 4)])
def test_processes_together_are_one(
    size: str, number: int, alone: tuple[str, dict[str, Any], dict[str, Any]], tmp_path: Path
) -> None:
    """Fingerprint, head, states, answers, log-probabilities, counts and an evaluation. Four processes with tp_size 2 are two replicas."""
    base, one, metrics = alone
    two_processes(partial(rank, tmp_path, base, size), tmp_path, number)
    ranks = [json.loads((tmp_path / f"rank-{each}.json").read_text()) for each in range(number)]
    together = 2 if size == "tp_size" else 1
    assert [each["read"]["replica"] for each in ranks] == [each // together for each in range(number)]
    assert sorted(row for each in ranks[::together] for row in each["read"]["mine"]) == one["mine"]
    for each in ranks:
        seen = each["read"]
        for name in ("fingerprint", "again", "hash", "rows", "proxy", "parameters", "shapes", "counts", "weights_id"):
            assert seen[name] == one[name], name
        for (ids, states, scored), (own_ids, own_states, own_scored) in zip(seen["read"], one["read"], strict=True):
            assert ids == own_ids
            torch.testing.assert_close(torch.tensor(states), torch.tensor(own_states), atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(torch.tensor(scored), torch.tensor(own_scored), atol=1e-5, rtol=1e-5)
        found = each["evaluate"]
        assert found["reward"]["mean"] == metrics["reward"]["mean"] and found["reward"]["n"] == metrics["reward"]["n"]
        assert found["perplexity_base"]["mean"] == pytest.approx(metrics["perplexity_base"]["mean"], rel=1e-4)
        assert found["decoding"]["generated_tokens"] == metrics["decoding"]["generated_tokens"]
    assert {len(ids) for ids, *_ in one["read"]} != {24}, "no answer ended before the others"
    assert (tmp_path / "evaluation" / METRICS_FILE).is_file()


LLAMA = LlamaConfig(hidden_size=48, num_attention_heads=6, num_key_value_heads=3)


@pytest.mark.parametrize(
    ("world", "sizes", "others", "sentence"),
    [
        (
            1,
            {"tp_size": 2},
            {},
            r"tp_size 2 needs several processes: start the command with torchrun --nproc_per_node 2\.",
        ),
        (1, {"fsdp_size": 4}, {}, r"fsdp_size 4 needs several processes: .* --nproc_per_node 4\."),
        (3, {"fsdp_size": 2}, {}, r"fsdp_size is 2, which does not divide the 3 processes that were started\."),
        (2, {"tp_size": 4}, {}, r"tp_size is 4, which does not divide the 2 processes that were started\."),
        (2, {"tp_size": 2, "fsdp_size": 2}, {}, r"Give only one of tp_size and fsdp_size\."),
        (2, {"tp_size": 2}, {"device_map": "auto"}, r"device_map and tp_size cannot go together: it places a model"),
        (2, {"fsdp_size": 2}, {"load_in_4bit": True}, r"load_in_4bit and fsdp_size cannot go together: 4-bit weights"),
        (2, {"fsdp_size": 2}, {"adapter": "a"}, r"adapter and fsdp_size cannot go together: merge the adapter first"),
        (
            2,
            {"tp_size": 2},
            {},
            r"tp_size is 2, which does not divide the model's 3 num_key_value_heads: use fsdp_size\.",
        ),
        (
            4,
            {"tp_size": 4},
            {},
            r"tp_size is 4, which does not divide the model's 6 num_attention_heads: use fsdp_size\.",
        ),
    ],
)
def test_what_cannot_be_spread(
    world: int, sizes: dict[str, int], others: dict[str, Any], sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", str(world))
    with pytest.raises(FrugalignError, match=f"^{sentence}"):
        spread(LLAMA, **({"tp_size": 1, "fsdp_size": 1} | sizes), **others)


def test_an_architecture_without_a_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(FrugalignError, match=r"^transformers has no plan to spread a gpt2 model by tp_size: use"):
        spread(GPT2Config(), 2, 1)


def test_one_process_is_the_default() -> None:
    assert spread(GPT2Config(), Spread().tp_size, Spread().fsdp_size, device_map="auto", adapter="a") == {}
