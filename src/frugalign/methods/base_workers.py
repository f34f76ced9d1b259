"""Workers on Ray that hold a frozen base, which each loads for itself."""

from __future__ import annotations

import os
from typing import Any

from frugalign.base.errors import FrugalignError
from frugalign.engines.fingerprints import BaseFingerprint, fingerprint
from frugalign.engines.loading import LoadedModel, load_model
from frugalign.options.loading import model_arguments
from frugalign.workers.pool import Pool
from frugalign.workers.ray_cluster import needs_of
from frugalign.workers.record import Record


def open_pool(args: Any, base: LoadedModel, about: BaseFingerprint, make: str, **more: Any) -> Pool:
    """The workers on Ray that `args` asks for, a config with `options.cluster.Workers`.

    Args:
        about: of the base. A worker whose base is another one is refused.
        make: names the function that makes a worker on Ray, from a record that `base_of` reads.
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

    values = {"name": seen_from_anywhere(name), "arguments": _arguments(args, base), "base": about.to_dict()}
    return RayPool(args.ray, args.ray_workers, needs_of(args), make, Record(values | more))


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
