"""The first two layers of the sandbox's model: it answers in the same sentences, in less than half the time.

For whole runs whose subject is the run: what its folder holds, where it resumes, how it fails.
"""

from __future__ import annotations

import atexit
import shutil
import tempfile
from functools import cache
from pathlib import Path

from safetensors.torch import load_file, save_file
from transformers import AutoConfig

from frugalign import sandbox

N_LAYERS = 2


@cache
def two_layers() -> str:
    """The model's folder, written once for each process that runs tests."""
    folder = Path(tempfile.mkdtemp(prefix="two-layers-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    for path in Path(sandbox.model).iterdir():
        if path.name != "model.safetensors":
            shutil.copy(path, folder)
    AutoConfig.from_pretrained(folder, num_hidden_layers=N_LAYERS).save_pretrained(folder)
    weights = load_file(Path(sandbox.model) / "model.safetensors")
    later = tuple(f"model.layers.{layer}." for layer in range(N_LAYERS, 5))
    save_file(
        {name: weight for name, weight in weights.items() if not name.startswith(later)},
        folder / "model.safetensors",
        {"format": "pt"},
    )
    return str(folder)
