"""Workers on Ray that hold a frozen base, which each loads for itself."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from frugalign.base.errors import FrugalignError
from frugalign.engines.fingerprints import BaseFingerprint, fingerprint
from frugalign.engines.loading import LoadedModel, load_model
from frugalign.engines.transformers import TransformersEngine
from frugalign.options.loading import model_arguments
from frugalign.workers.pool import Pool
from frugalign.workers.ray_cluster import LOCAL, check_python, needs_of
from frugalign.workers.record import Record

if TYPE_CHECKING:
    from frugalign.decoding.vllm import VllmEngine


def asks_for_workers(args: Any) -> bool:
    """Whether `args`, a config with `options.cluster.Workers`, asks for workers on Ray.

    Raises:
        FrugalignError: it asks for vLLM without them.
    """
    if args.ray is None and args.ray_engine != "transformers":
        raise FrugalignError(f"ray_engine {args.ray_engine} runs in workers: add --ray local, or a cluster's address.")
    return args.ray is not None


def open_pool(args: Any, base: LoadedModel, about: BaseFingerprint, make: str, **more: Any) -> Pool:
    """The workers on Ray that `args` asks for, a config with `options.cluster.Workers`.

    Args:
        about: of the base. A worker whose base is another one is refused.
        make: names the function that makes a worker on Ray, from a record that `engine_of` reads.
        more: further values of that record, JSON-ready.

    Raises:
        FrugalignError: a base without a name, several processes at once, or Ray cannot be used.
    """
    if args.world_size > 1:
        raise FrugalignError(
            "Several processes and --ray at once are not supported: start one process, and raise ray_workers."
        )
    name = base.name or about.name
    if not name:
        raise FrugalignError(
            "Workers on Ray load the base by its name: give the trainer a name or a folder, not a module."
        )
    from frugalign.workers.ray_pool import RayPool

    if args.ray_engine == "vllm":
        from frugalign.methods.base_in_vllm import described

        record = described(args, base, seen_from_anywhere(name))
    else:
        arguments = _arguments(args, base)
        record = Record({"name": seen_from_anywhere(name), "arguments": arguments, "base": about.to_dict()})
    if args.ray == LOCAL and args.ray_python is not None:
        check_python(args.ray_python)
    needs, values = replace(needs_of(args), python=args.ray_python), {"engine": args.ray_engine, **record.values}
    return RayPool(args.ray, args.ray_workers, needs, make, Record(values | more, record.tensors))


def engine_of(about: Record) -> TransformersEngine | VllmEngine:
    """The engine of a worker on Ray.

    Raises:
        FrugalignError: the base cannot be loaded there, or is another one than the trainer's.
    """
    if about.values["engine"] == "vllm":
        from frugalign.methods import base_in_vllm

        return base_in_vllm.engine_of(about)
    base = base_of(about)
    return TransformersEngine(base.model, base.tokenizer)


def base_of(about: Record) -> LoadedModel:
    """The base of a worker on Ray.

    Raises:
        FrugalignError: it cannot be loaded there, or is another one than the trainer's.
    """
    values = about.values
    base = load_model(values["name"], **values["arguments"])
    expected = BaseFingerprint.read(values["base"], "The training")
    if differences := expected.differences(fingerprint(base.model, base.tokenizer)):
        raise FrugalignError(
            f"The model {values['name']} of a worker on {os.uname().nodename} is not the trainer's: they differ in {'; '.join(differences)}."
        )
    return base


def _arguments(args: Any, base: LoadedModel) -> dict[str, Any]:
    """Of `load_model` in a worker: the dtype of the trainer's base, and a device of its own."""
    found = model_arguments(args)
    device = "cpu" if args.ray_gpus == 0 else None if found["device_map"] == "cpu" else found["device_map"]
    adapter = None if found["adapter"] is None else seen_from_anywhere(found["adapter"])
    dtype = found["dtype"] if args.load_in_4bit else str(base.model.dtype).removeprefix("torch.")
    return found | {"device_map": device, "dtype": dtype, "adapter": adapter}


def seen_from_anywhere(name: str) -> str:
    """A path that does not depend on the folder that a process works in."""
    return os.path.abspath(name) if os.path.exists(name) else name
