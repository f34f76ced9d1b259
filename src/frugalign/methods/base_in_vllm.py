"""The frozen base of a worker in vLLM: what the trainer says of it, and whether the worker then holds the same model."""

from __future__ import annotations

import logging
import math
import os
from typing import Any

import torch

from frugalign.base.errors import FrugalignError
from frugalign.base.specs import resolve_name
from frugalign.decoding.vllm import VllmEngine, check_settings
from frugalign.engines.loading import LoadedModel
from frugalign.engines.transformers import TransformersEngine
from frugalign.workers.record import Record

_PROBE = 16
"""Tokens after which both states are compared."""
_SAME, _QUANTISED = 0.1, 0.7
"""How far they may lie apart, as a share of their size: of the same weights, and, with a warning, of those that vLLM quantises. Measured on a model of
135 million parameters: bfloat16 moves a state by 2.5 %, eight bits by 4 % and four by 36 %. Random weights are 130 % away."""
_log = logging.getLogger(__name__)


def described(args: Any, base: LoadedModel, name: str) -> Record:
    """What a worker needs to load this base in vLLM and to check it.

    Args:
        args: a config with `options.cluster.Workers`. name: of the base, as any machine sees it.

    Raises:
        FrugalignError: an option that vLLM, or a proxy in it, does not support.
    """
    if args.load_in_4bit:
        raise FrugalignError("load_in_4bit is for transformers: with ray_engine vllm, name a model that is quantised.")
    if getattr(args, "adapter", None) is not None:
        raise FrugalignError("ray_engine vllm reads no adapter of the base: merge it into the model, and name that.")
    if args.candidate_features == "lookahead":
        raise FrugalignError("vLLM copies no cache, so it does not support lookahead: use --ray_engine transformers.")
    check_settings(args.vllm_args or {})
    engine = TransformersEngine(base.model, base.tokenizer)
    vocabulary = len(engine.output_embeddings())
    ids = [vocabulary * (2 * place + 1) // (2 * _PROBE) for place in range(_PROBE)]
    with torch.no_grad(), engine.running():
        _, output = engine.prefill([ids])
    arguments = {"dtype": str(base.model.dtype).removeprefix("torch."), "revision": args.revision}
    values = {"name": name, "arguments": arguments | (args.vllm_args or {}), "ends": list(engine.end_token_ids)}
    return Record(values | {"probe": ids}, {"hidden": output.hidden[0]})


def engine_of(about: Record) -> VllmEngine:
    """The engine of a worker, from what the trainer `described`.

    Raises:
        FrugalignError: vLLM cannot be used there, or holds another model.
    """
    values, expected = about.values, about.tensors["hidden"]
    engine = VllmEngine(resolve_name(values["name"]), values["ends"], values["arguments"])
    found = engine.state_after(values["probe"])[0].float().cpu()
    gap = float((found - expected).norm() / expected.norm()) if found.shape == expected.shape else float("inf")
    there = f"The model {values['name']} in vLLM on {os.uname().nodename}"
    if not gap <= (_QUANTISED if engine.is_quantised else _SAME):
        by = f" by {gap:.0%} of their size" if math.isfinite(gap) else ""
        raise FrugalignError(f"{there} is not the trainer's: their states after the same tokens differ{by}.")
    if gap > _SAME:
        _log.warning("%s is quantised, and its states are %.0f %% of their size from the trainer's.", there, 100 * gap)
    return engine
