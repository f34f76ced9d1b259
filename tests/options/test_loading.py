"""How model options become arguments of `load_model`."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from frugalign.options import groups
from frugalign.options.loading import model_arguments, policy_arguments


@dataclass
class Adapted(groups.ModelAdapter, groups.Spread, groups.Model):
    pass


def test_every_model_option_is_passed_on() -> None:
    options = Adapted(revision="main", dtype="bfloat16", device_map="auto", load_in_4bit=True, adapter="a", tp_size=2)
    assert model_arguments(options) == {
        "revision": "main",
        "dtype": "bfloat16",
        "device_map": "auto",
        "load_in_4bit": True,
        "adapter": "a",
        "tp_size": 2,
        "fsdp_size": 1,
    }
    assert model_arguments(groups.Model())["adapter"] is None


def test_the_cpu_where_no_device_map_says_otherwise() -> None:
    assert model_arguments(groups.Model(use_cpu=True))["device_map"] == "cpu"
    assert model_arguments(groups.Model(use_cpu=True, device_map="cuda:1"))["device_map"] == "cuda:1"
    assert model_arguments(groups.Model())["device_map"] is None


@pytest.mark.parametrize(
    ("dtype", "trains_every_weight", "found"),
    [(None, True, "float32"), (None, False, None), ("bfloat16", True, "bfloat16")],
)
def test_a_model_trained_whole_is_in_float32(dtype: str | None, trains_every_weight: bool, found: str | None) -> None:
    options = groups.Model(dtype=dtype)
    assert policy_arguments(options, trains_every_weight=trains_every_weight)["dtype"] == found
