"""Options of work on Ray, declared once for every verb that has it. No torch, and no Ray."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from frugalign.options.declare import Group, option
from frugalign.options.kinds import NAME, NON_NEGATIVE, POSITIVE, SIZE


@dataclass(eq=False, repr=False)
class Cluster(Group, section="Ray"):
    """Where pieces of work run, and what each of them reserves."""

    ray: str | None = option(
        None,
        "Run on Ray: `local` starts it on this machine, and auto, HOST:PORT or ray://HOST:PORT joins a cluster. Default: without Ray.",
        NAME,
    )
    ray_cpus: float = option(1.0, "CPU cores that each of them reserves.", POSITIVE)
    ray_gpus: float = option(
        0.0, "GPUs that each of them reserves; a fraction shares one, and 0 is the CPU.", NON_NEGATIVE
    )
    ray_memory_gib: float | None = option(None, "GiB of memory that each of them reserves. Default: none.", POSITIVE)


@dataclass(eq=False, repr=False)
class Workers(Cluster, section="Ray"):
    """Workers that hold a copy of the frozen model each."""

    ray_workers: int = option(2, "Workers on Ray, each with a copy of the frozen model.", SIZE)
    ray_engine: Literal["transformers", "vllm"] = option("transformers", "What runs the frozen model in each worker.")
    ray_python: str | None = option(
        None, "Python of the workers, where vLLM has an environment of its own. Default: the one of this command.", NAME
    )
    vllm_args: dict[str, Any] | None = option(
        None, 'Further arguments of vLLM\'s `LLM` as JSON, such as {"gpu_memory_utilization": 0.8}.'
    )


RAY_OPTIONS = frozenset(
    {"ray", "ray_cpus", "ray_gpus", "ray_memory_gib", "ray_workers", "ray_engine", "ray_python", "vllm_args"}
)
"""Where work is done. What it gives does not depend on them, so they may change when a run is resumed."""
