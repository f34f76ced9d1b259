"""What a proxy adds to a token, by the engine that runs it: measured beside plain decoding, and counted for 7 billion parameters.

    python -m experiments.engine_costs [--smoke] [--model_name_or_path M]

Measured: processor seconds on one thread of a step of many rows, and of what each engine does with its states and logits. The ways take turns.
Counted: floating-point operations, and bytes read, of one token at one row, where nothing is shared between rows. What a pass over
the vocabulary reads and writes is counted as if nothing stayed in a cache. A matrix of the base is read in two bytes a weight.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from experiments.summary import script_options, write_summary

ROWS, REPEATS = 16, 7
PASSES = {"plain": 4, "server": 8, "attach": 12, "bundle": 14, "bundle, from logits": 14}
"""Arrays of the vocabulary's size, in float32, that are read or written for a token."""


@dataclass(frozen=True)
class Size:
    """What decides the cost of a token. `dim`: of the query network and of the keys; `candidates`: tokens judged by themselves."""

    parameters: float
    width: int
    vocabulary: int
    dim: int
    candidates: int = 16


SEVEN_BILLION = Size(7e9, 4096, 128_256, 256)


def counted(size: Size, way: str) -> tuple[float, float]:
    """Operations and bytes that a way to draw a token adds to the forward pass."""
    operations, read = float(PASSES[way] * size.vocabulary), 4.0 * PASSES[way] * size.vocabulary
    if way != "plain":
        network = size.width * size.dim + size.dim**2
        judged = size.candidates * size.dim
        operations, read = operations + 2 * (network + judged), read + 4 * network + 2 * judged
    if way.endswith("from logits"):
        inverse = 4 * size.width**2
        operations, read = operations + 2 * inverse, read + 4 * inverse
    return operations, read


def shares(size: Size) -> dict[str, dict[str, float]]:
    """Plain decoding's operations and bytes, as a share of each engine's."""
    plain = [a + b for a, b in zip((2 * size.parameters, 2 * size.parameters), counted(size, "plain"), strict=True)]
    found = {}
    for way in PASSES:
        own = counted(size, way)
        found[way] = {
            "operations, 7 B": plain[0] / (2 * size.parameters + own[0]),
            "bytes, 7 B": plain[1] / (2 * size.parameters + own[1]),
        }
    return found


def medians(ways: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """Median processor seconds of each way. They take turns, after a round that warms up."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(repeats + 1):
        for name, way in ways.items():
            started = time.process_time()
            way()
            if number:
                seconds[name].append(time.process_time() - started)
    return {name: statistics.median(values) for name, values in seconds.items()}


def ways_of(served: Any, bundle: Any, rows: int) -> dict[str, Callable[[], Any]]:
    """A step of the model, and one token of every row by each way."""
    from frugalign.decoding.chooser import draw_token
    from frugalign.decoding.continuous import Row
    from frugalign.decoding.noise import Noise, row_keys
    from frugalign.proxy.mixed import RowSettings

    generator = torch.Generator().manual_seed(0)
    embeddings = served.base.model.get_input_embeddings().weight
    prompts = torch.randint(0, len(embeddings), (rows, 8), generator=generator).tolist()
    with served.engine.running():
        sequences, output = served.engine.prefill(prompts)
    h, logits = output.hidden.float(), output.logits.float()
    noise = Noise(row_keys(0, 0, range(rows), [0] * rows), torch.zeros(rows, dtype=torch.long))
    own = [Row([1], 0, 10**6, RowSettings(("it",), (1.0,))) for _ in range(rows)]
    guide, which = served.guide.guide(["it"]), np.zeros(rows, dtype=np.int64)

    def step() -> None:
        with served.engine.running():
            sequences.step(torch.tensor([prompt[0] for prompt in prompts]))

    return {
        "step": step,
        "plain": lambda: draw_token(logits, noise),
        "server": lambda: served.guide(h, logits, own, noise),
        "attach": lambda: draw_token(guide.log_probs(h, logits), noise),
        "bundle": lambda: draw_token(bundle.judge(logits, h, which, 1.0), noise),
        "bundle, from logits": lambda: draw_token(bundle.judge(logits, None, which, 1.0), noise),
    }


def measured(model: str, rows: int, repeats: int) -> dict[str, dict[str, float]]:
    """Milliseconds a row of each way, and plain decoding's as a share of them."""
    from frugalign.engines.fingerprints import fingerprint
    from frugalign.engines.loading import load_model
    from frugalign.proxy.export import export_proxy
    from frugalign.proxy.network import new_proxy
    from frugalign.serving.models import load_served
    from frugalign_runtime import Proxies

    base = load_model(model, device_map="cpu")
    proxy = new_proxy(base.model, {})
    torch.nn.init.normal_(proxy.query_out.weight, std=0.3)
    proxy.config.base = fingerprint(base.model, base.tokenizer, name=model).to_dict()
    with tempfile.TemporaryDirectory() as folder:
        proxy.save_pretrained(Path(folder) / "it")
        served = load_served(model, [f"it={Path(folder) / 'it'}"], device_map="cpu")
    with torch.no_grad():
        bundle = Proxies([export_proxy(proxy, base).bundle])
        seconds = medians(ways_of(served, bundle, rows), repeats)
    step, counts = seconds.pop("step"), shares(SEVEN_BILLION)
    return {
        way: {
            "ms a row": 1000 * spent / rows,
            "share of plain decoding": (step + seconds["plain"]) / (step + spent),
            **counts[way],
        }
        for way, spent in seconds.items()
    } | {"forward pass": {"ms a row": 1000 * step / rows}}


def main() -> None:
    """Measure, print and write the table."""
    given = script_options(__doc__, model_name_or_path={"default": "frugalign.sandbox:model"})
    torch.set_num_threads(1)
    rows = measured(given.model_name_or_path, *((2, 1) if given.smoke else (ROWS, REPEATS)))
    for name, row in rows.items():
        print(name, json.dumps(row), flush=True)
    if not given.smoke:
        facts = {
            "rows": ROWS,
            "counted for": "7 billion parameters, width 4,096, 128,256 tokens, proxy d = 256, 16 candidates",
        }
        command = "python -m experiments.engine_costs --model_name_or_path M"
        write_summary("engine-costs", command, given.model_name_or_path.rstrip("/").rpartition("/")[-1], rows, facts)


if __name__ == "__main__":
    main()
