"""The base of a worker in vLLM: what the trainer says of it, and whether it is the same. vLLM is a stand-in."""

from __future__ import annotations

import ast
import importlib.util
import logging
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.two_layers import two_layers

from frugalign import sandbox
from frugalign.base.errors import FrugalignError
from frugalign.engines.loading import LoadedModel, load_model
from frugalign.methods.base_in_vllm import described
from frugalign.methods.base_workers import asks_for_workers, engine_of
from frugalign.methods.proxy_rlhf import ProxyConfig
from frugalign.workers.record import Record, pack, unpack


@pytest.fixture(scope="module")
def base() -> LoadedModel:
    return load_model(two_layers(), device_map="cpu")


def config(tmp_path: Path, **options: Any) -> ProxyConfig:
    return ProxyConfig(
        output_dir=str(tmp_path / "run"), use_cpu=True, **{"ray": "local", "ray_engine": "vllm"} | options
    )


def about(args: ProxyConfig, base: LoadedModel, name: str = two_layers()) -> Record:
    record = described(args, base, name)
    return unpack(pack(Record({"engine": "vllm", **record.values}, record.tensors)))


def test_the_same_base(vllm: None, base: LoadedModel, tmp_path: Path) -> None:
    found = engine_of(about(config(tmp_path, vllm_args={"max_num_seqs": 2}), base))
    assert found._llm.max_num_seqs == 2 and found.end_token_ids
    torch.testing.assert_close(found.output_embeddings(), base.model.get_output_embeddings().weight.detach())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_dtype_is_the_trainers(vllm: None, dtype: str, tmp_path: Path) -> None:
    found = engine_of(about(config(tmp_path), load_model(two_layers(), device_map="cpu", dtype=dtype)))
    assert found.dtype == getattr(torch, dtype)


def test_another_base(vllm: None, base: LoadedModel, tmp_path: Path) -> None:
    for said in (
        about(config(tmp_path), base, "frugalign.sandbox:model"),
        about(config(tmp_path), base, str(sandbox.model)),
    ):
        with pytest.raises(
            FrugalignError,
            match=r"The model .* in vLLM on .* is not the trainer's: their states after the same tokens differ by",
        ):
            engine_of(said)


def test_another_width_and_a_state_that_is_not_a_number(vllm: None, base: LoadedModel, tmp_path: Path) -> None:
    said = about(config(tmp_path), base)
    for hidden in (said.tensors["hidden"][:-1], said.tensors["hidden"] * float("nan")):
        with pytest.raises(FrugalignError, match=r"is not the trainer's: their states after the same tokens differ\."):
            engine_of(replace(said, tensors={"hidden": hidden}))


@pytest.mark.parametrize(
    ("factor", "quantised", "says"), [(1.08, "", ""), (1.25, "fp8", "20 %"), (1.25, "", None), (5.0, "fp8", None)]
)
def test_how_far_it_may_be_away(
    vllm: None,
    base: LoadedModel,
    factor: float,
    quantised: str,
    says: str | None,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """In silence, with a warning, or not at all: that depends on whether vLLM quantises it."""
    said = about(config(tmp_path, vllm_args={"quantization": quantised} if quantised else None), base)
    moved = replace(said, tensors={"hidden": said.tensors["hidden"] * factor})
    if says is None:
        with pytest.raises(
            FrugalignError,
            match=r"is not the trainer's: their states after the same tokens differ by [28]0% of their size\.",
        ):
            engine_of(moved)
        return
    with caplog.at_level(logging.WARNING):
        engine_of(moved)
    assert caplog.text.count("is quantised, and its states are") == bool(says) and says in caplog.text


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"load_in_4bit": True}, "load_in_4bit is for transformers"),
        ({"adapter": "somewhere"}, "ray_engine vllm reads no adapter of the base"),
        ({"vllm_args": {"tensor_parallel_size": 2}}, "tensor_parallel_size = 2"),
        ({"candidate_features": "lookahead"}, "vLLM copies no cache, so it does not support lookahead"),
    ],
)
def test_what_is_refused_before_a_worker_starts(
    base: LoadedModel, options: dict[str, Any], says: str, tmp_path: Path
) -> None:
    with pytest.raises(FrugalignError, match=says):
        about(config(tmp_path, **options), base)


def test_vllm_without_workers(tmp_path: Path) -> None:
    assert asks_for_workers(config(tmp_path)) and not asks_for_workers(
        config(tmp_path, ray=None, ray_engine="transformers")
    )
    with pytest.raises(
        FrugalignError, match="ray_engine vllm runs in workers: add --ray local, or a cluster's address"
    ):
        asks_for_workers(config(tmp_path, ray=None))


def test_workers_import_only_what_vllm_brings_along() -> None:
    """Their environment has neither our version of transformers nor our other dependencies. What is imported in functions is left out."""
    left = [
        "frugalign.methods.proxy_rlhf.rollout_worker",
        "frugalign.methods.features_in_vllm",
        "frugalign.decoding.vllm_sampler",
    ]
    seen, others = set[str](), set[str]()
    while left:
        name = left.pop()
        spec = importlib.util.find_spec(name)
        if name in seen or spec is None or spec.origin is None:
            continue
        seen.add(name)
        for node in ast.parse(Path(spec.origin).read_text(encoding="utf-8")).body:
            found = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            found += [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
            left += [each for each in found if each.startswith("frugalign")]
            others |= {each.split(".")[0] for each in found if not each.startswith("frugalign")}
    assert len(seen) > 30
    assert others - set(sys.stdlib_module_names) <= {"torch", "numpy", "safetensors", "transformers", "vllm"}
