"""What one GPU does in eight minutes: decoding, training passes and memory on random bases of 1 and 7 billion parameters, and a learning run.

    python -m experiments.gpu [--minutes 8] [--parts decode-1B learn] [--out runs/gpu]

No model is downloaded. Each part has a process and a time limit of its own; what fails or takes too long is a row with the reason. Prints a
table and writes OUT/gpu.json. Without a GPU, every part runs at toy size on the CPU, and the first line and the JSON say so.

"Share of bandwidth" compares with a device that only reads the weights once a step, and the keys and values of every row, as fast as it copies
memory.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

# So that asking for a GPU leaves this process able to fork: the children use the device.
os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")

import torch
from experiments import gpu_parts
from experiments.gpu_parts import Machine, Result, reason

from frugalign.base.files import write_json_atomic

COLUMNS = (
    ("tokens a second", "{:,.0f}"),
    ("share of bandwidth", "{:.2f}"),
    ("peak GB", "{:.1f}"),
    ("seconds", "{:.1f}"),
)


@dataclass(frozen=True)
class Part:
    """A part, and its limit in seconds."""

    run: Callable[[Machine], Iterator[Result]]
    seconds: float


PARTS = {
    "bandwidth": Part(gpu_parts.bandwidth, 30),
    "decode-1B": Part(lambda machine: gpu_parts.decode(machine, "1B"), 90),
    "decode-7B": Part(lambda machine: gpu_parts.decode(machine, "7B"), 120),
    "train-1B": Part(lambda machine: gpu_parts.train(machine, "1B"), 60),
    "train-7B": Part(lambda machine: gpu_parts.train(machine, "7B"), 90),
    "learn": Part(gpu_parts.learn, 60),
    "loading-1B": Part(lambda machine: gpu_parts.loading(machine, "1B"), 60),
    "static-1B": Part(lambda machine: gpu_parts.static(machine, "1B"), 120),
}
"""In the order of how much they say, since the script's time may end before them."""


def collect(part: Part, machine: Machine) -> Iterator[Result]:
    """The rows of a part. An exception becomes the last one."""
    try:
        yield from part.run(machine)
    except Exception as error:  # whatever a library raises, the other parts run
        yield {"what": "the rest of the part", "failed": reason(error)}


def collect_apart(part: Part, machine: Machine, limit: float, work: Path) -> list[Result]:
    """The rows of a part that runs in a process of its own, for `limit` seconds at most. What it printed is in `work`."""
    rows, log = work.with_suffix(".jsonl"), work.with_suffix(".log")
    rows.write_text("", "utf-8")
    process = multiprocessing.get_context("fork").Process(target=_child, args=(part, machine, rows, log))
    process.start()
    process.join(limit)
    ended = process.exitcode
    if ended is None:
        process.kill()
        process.join()
    found = [json.loads(line) for line in rows.read_text("utf-8").splitlines()]
    if ended is None:
        found.append({"what": "the rest of the part", "failed": f"stopped after its limit of {limit:.0f} s"})
    elif ended:
        found.append({"what": "the rest of the part", "failed": f"its process ended with {ended}; see {log}"})
    return found


def _child(part: Part, machine: Machine, rows: Path, log: Path) -> None:
    with log.open("w", encoding="utf-8") as to:
        os.dup2(to.fileno(), 1)
        os.dup2(to.fileno(), 2)
        with rows.open("a", encoding="utf-8") as out:
            for row in collect(part, machine):
                out.write(json.dumps(row) + "\n")
                out.flush()
        sys.stdout.flush()


def run(parts: Sequence[str], machine: Machine, minutes: float, work: Path) -> list[Result]:
    """The rows of all parts, each with its part's name. A part that has no time left is a row too."""
    ends, found = time.monotonic() + 60 * minutes, list[Result]()
    for name in parts:
        part, left = PARTS[name], ends - time.monotonic()
        if left < 5:
            found.append({"part": name, "what": name, "failed": f"not started: the {minutes:g} minutes were over"})
            continue
        rows = collect_apart(part, machine, min(part.seconds, left), work / name)
        found += [{"part": name} | row for row in rows]
        for row in rows:
            print(_line(row), flush=True)
            if "GB a second" in row:
                machine = Machine(machine.device, machine.toy, row["GB a second"] * 1e9)
    return found


def _line(row: Result) -> str:
    if "failed" in row:
        return f"{row['what']:58} {row['failed']}"
    cells = [shape.format(row[name]) if row.get(name) is not None else "" for name, shape in COLUMNS]
    known = {"part", "what", "ms a step", *(name for name, _ in COLUMNS)}
    more = [f"{name} {value:.3g}" for name, value in row.items() if name not in known and value is not None]
    return " ".join([f"{row['what']:58}", *(f"{cell:>10}" for cell in cells), "  ".join(more)]).rstrip()


def facts(machine: Machine) -> dict[str, Any]:
    """The machine and the libraries."""
    versions = {name: version(name) for name in ("torch", "transformers")}
    return {"gpu": gpu_name(), "toy": machine.toy, "machine": platform.machine(), "versions": versions}


def gpu_name() -> str | None:
    """The first GPU's name and memory, asked for in a process of its own."""
    if not torch.cuda.is_available():
        return None
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()
    process = context.Process(target=_name_gpu, args=(queue,))
    process.start()
    process.join(60)
    return queue.get() if process.exitcode == 0 else "unknown"


def _name_gpu(queue: Any) -> None:
    found = torch.cuda.get_device_properties(0)
    queue.put(f"{found.name}, {found.total_memory / 1e9:.0f} GB")


def main() -> None:
    """Run the parts, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=8.0, help="No part runs longer than until then.")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--out", type=Path, default=Path("runs/gpu"))
    given = parser.parse_args()
    is_gpu = torch.cuda.is_available()
    machine = Machine("cuda:0" if is_gpu else "cpu", toy=not is_gpu)
    about = facts(machine)
    toy = "NO GPU HERE: toy sizes on the CPU. The numbers only show that the script runs."
    print(toy if machine.toy else f"{about['gpu']}, torch {about['versions']['torch']}")
    print(" ".join([" " * 58, *(f"{name.split()[-1] if len(name) > 10 else name:>10}" for name, _ in COLUMNS)]))
    given.out.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    rows = run(given.parts, machine, given.minutes, given.out)
    write_json_atomic(given.out / "gpu.json", about | {"seconds": time.monotonic() - started, "rows": rows})
    print(f"{len(rows)} rows, {sum('failed' in row for row in rows)} of them failed: {given.out / 'gpu.json'}")


if __name__ == "__main__":
    main()
