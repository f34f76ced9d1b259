"""`frugalign env`: versions and hardware, to paste into a bug report."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

from frugalign import __version__
from frugalign.cli.parser import Command, parse

_PACKAGES = ("torch", "transformers", "trl", "peft", "accelerate", "datasets", "safetensors", "tokenizers", "numpy")


@dataclass
class EnvOptions:
    """`frugalign env` has no options."""


COMMAND = Command("env", "Print versions and hardware, for a bug report.", EnvOptions)


def run(argv: list[str]) -> int:
    """Print one line per fact."""
    parse(COMMAND, argv)
    facts = list(environment())
    width = max(len(name) for name, _ in facts)
    for name, value in facts:
        print(f"{name:<{width}}  {value}")
    return 0


def environment() -> Iterator[tuple[str, str]]:
    """(name, value) pairs of versions and hardware."""
    yield "frugalign", __version__
    yield "python", platform.python_version()
    yield "platform", platform.platform()
    for package in _PACKAGES:
        try:
            yield package, version(package)
        except PackageNotFoundError:
            yield package, "not installed"
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    yield "cores", f"{usable} usable of {os.cpu_count()}"
    yield "memory", _memory()
    yield "accelerator", _accelerator()


def _memory() -> str:
    try:
        import psutil  # type: ignore[import-untyped]
    except ImportError:
        return "unknown (psutil is not installed)"
    memory = psutil.virtual_memory()
    return f"{memory.total / 2**30:.1f} GiB, {memory.available / 2**30:.1f} available"


def _accelerator() -> str:
    try:
        import torch
    except ImportError:
        return "unknown (torch is not installed)"
    if torch.cuda.is_available():
        found = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
        names = [f"{device.name} ({device.total_memory / 2**30:.0f} GiB)" for device in found]
        return f"{', '.join(names)}, CUDA {torch.version.cuda}"
    if torch.backends.mps.is_available():
        return "Apple GPU (mps)"
    return f"none (torch uses {torch.get_num_threads()} threads)"
