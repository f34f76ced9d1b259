"""What accelerate launch or --fsdp asks for becomes the sharding of a proxy's frozen base."""

from __future__ import annotations

import os
from types import SimpleNamespace
from typing import Any

import pytest

from frugalign.options.launcher import shard_the_base

FSDP, MESH = {"ACCELERATE_USE_FSDP": "true"}, {"ACCELERATE_USE_PARALLELISM_CONFIG": "true"}


@pytest.mark.parametrize(
    ("environment", "given", "sizes"),
    [
        ({}, {}, (1, 1)),
        (FSDP, {}, (1, 4)),
        ({}, {"fsdp": "full_shard"}, (1, 4)),
        ({}, {"fsdp": True}, (1, 4)),
        (MESH | {"PARALLELISM_CONFIG_TP_SIZE": "2"}, {}, (2, 1)),
        (MESH | {"PARALLELISM_CONFIG_DP_SHARD_SIZE": "4"}, {}, (1, 4)),
        (MESH | {"PARALLELISM_CONFIG_DP_SHARD_SIZE": "2"} | FSDP, {}, (1, 2)),
        (MESH, {}, (1, 1)),
        (FSDP, {"tp_size": 2}, (2, 1)),
    ],
)
def test_the_base_is_sharded_and_the_proxy_is_not(
    environment: dict[str, str], given: dict[str, Any], sizes: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in ({"WORLD_SIZE": "4"} | environment).items():
        monkeypatch.setenv(name, value)
    config = SimpleNamespace(**({"tp_size": 1, "fsdp_size": 1, "fsdp": None, "train": "proxy"} | given))
    shard_the_base(config)
    assert (config.tp_size, config.fsdp_size) == sizes
    assert not config.fsdp and "true" not in [os.environ.get(name) for name in (*FSDP, *MESH)]


@pytest.mark.parametrize(
    "config",
    [
        SimpleNamespace(tp_size=1, fsdp_size=1, fsdp=True, train="lora"),
        SimpleNamespace(tp_size=1, fsdp_size=1, fsdp=True, train="full"),
        SimpleNamespace(fsdp=True),
    ],
)
def test_trained_weights_are_left_to_trainer(config: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    shard_the_base(config)
    assert config.fsdp and os.environ["ACCELERATE_USE_FSDP"] == "true" and getattr(config, "fsdp_size", 1) == 1
