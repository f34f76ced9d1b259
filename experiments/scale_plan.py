"""A plan for a base of 70 billion parameters and a million prompts on 8 and on 64 GPUs: memory, the time of a round, bytes, and LoRA-RLOO beside it.

    python -m experiments.scale_plan [--gpu runs/gpu/gpu.json] [--smoke]

Nothing here was run at this size. Sizes, FLOPs and bytes are counted from the shapes; the GPUs' figures are published ones; what no count gives
is an assumption, named in `Assumed`. `--gpu` takes the share of the memory's bandwidth from a run of `make gpu` instead of assuming it. What was
measured on smaller bases is in the summaries speed, memory and scaling. `docs/scale.md` shows the tables and says which number is which.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from experiments.gpu_bases import GB, SHAPES, Shape
from experiments.summary import script_options, write_summary

from frugalign.base.json_files import read_json

TERA = 1e12
Rows = dict[str, dict[str, float]]


@dataclass(frozen=True)
class Gpu:
    """Published figures: bytes, bytes a second, dense bfloat16 and float32 FLOPs a second, and bytes a second to the other GPUs (NVLink)."""

    memory: float
    bandwidth: float
    flops: float
    float32: float
    link: float


GPUS = {
    "H100": Gpu(80e9, 3.35e12, 989e12, 67e12, 450e9),
    "H200": Gpu(141e9, 4.8e12, 989e12, 67e12, 450e9),
}


@dataclass(frozen=True)
class Assumed:
    """What is neither counted nor published.

    `bandwidth`, `flops`, `training`: shares of a GPU's figures that decoding steps, prompts and training passes reach. `step`: seconds of a
    decoding step that are neither reading nor arithmetic, such as sampling. `reduce`: seconds until an all-reduce within a replica begins to
    move bytes; a layer has two. `guided`: speed of guided decoding beside plain decoding; 1.0 to 1.07 were measured on 124 million parameters. `network`: bytes a second
    into the machine that trains the proxy. `used`: share of the memory that may be planned.
    """

    bandwidth: float = 0.6
    flops: float = 0.5
    training: float = 0.4
    step: float = 2e-3
    reduce: float = 15e-6
    guided: float = 0.9
    network: float = 12.5e9
    used: float = 0.9


@dataclass(frozen=True)
class Job:
    """Every prompt is visited once. A round has `responses`, `group` of them for a prompt."""

    prompts: int = 1_000_000
    group: int = 4
    prompt_tokens: int = 256
    new_tokens: int = 256
    responses: int = 4096
    passes: int = 8
    minibatches: int = 2

    @property
    def rounds(self) -> float:
        return self.prompts * self.group / self.responses

    @property
    def positions(self) -> int:
        """Tokens sampled in a round. All count as decided: with the tail kept, they are."""
        return self.responses * self.new_tokens


@dataclass(frozen=True)
class Layout:
    """`gpus` of a kind. `split` of them hold the base together by tensor parallelism, and decode `rows` responses at once."""

    kind: str
    gpus: int
    split: int
    rows: int

    @property
    def gpu(self) -> Gpu:
        return GPUS[self.kind]

    @property
    def replicas(self) -> int:
        return self.gpus // self.split


LAYOUTS = {
    "8 × H100": Layout("H100", 8, 4, 512),
    "8 × H200": Layout("H200", 8, 2, 512),
    "64 × H100": Layout("H100", 64, 4, 256),
    "64 × H200": Layout("H200", 64, 2, 128),
}
DIM, CANDIDATES, LORA_RANK, MICRO_BATCH = 256, 12, 16, 8


@dataclass(frozen=True)
class Counts:
    """What follows from the shape of a base alone. Bytes and FLOPs."""

    shape: Shape

    @property
    def weights(self) -> int:
        return 2 * self.shape.parameters

    @property
    def proxy(self) -> int:
        """Trained numbers: norm, two layers to the query, the keys' layer and the tail's key."""
        width = self.shape.width
        return 2 * width + (width + 1) * DIM + (DIM + 1) * DIM + (width + 1) * DIM + DIM + 1

    @property
    def lora(self) -> int:
        """Trained numbers of adapters on every linear layer."""
        shape, head = self.shape, self.shape.width // self.shape.heads
        kv = shape.kv_heads * head
        attention = 4 * shape.width + 2 * (shape.width + kv)
        return shape.layers * LORA_RANK * (attention + 3 * (shape.width + shape.inner))

    def record(self) -> int:
        """Bytes of a decided token that travel: its state in bfloat16, id, log-probability and mask of its candidates, and what is fixed."""
        return 2 * self.shape.width + 9 * CANDIDATES + 24

    def optimise(self, job: Job) -> float:
        """FLOPs of a round's optimisation if every pass is made. Each minibatch computes the keys of its distinct candidates anew."""
        width = self.shape.width
        a_position = 2 * (width * DIM + DIM * DIM + CANDIDATES * DIM)
        keys = 2 * self.shape.vocabulary * width * DIM
        return 3 * job.passes * (job.positions * a_position + job.minibatches * keys)


def memory(layout: Layout, counts: Counts, job: Job) -> dict[str, float]:
    """GB of one GPU of a replica, by what holds them."""
    shape, gpus = counts.shape, layout.split
    length = job.prompt_tokens + job.new_tokens
    states = (
        job.positions / layout.replicas * 4 * shape.width * 2 / gpus
    )  # the buffer and its minibatches, split like the base
    found = {
        "weights": counts.weights / gpus,
        "keys and values": layout.rows * length * shape.kv_bytes() / gpus,
        "logits": layout.rows * shape.vocabulary * 4 * 4,
        "the proxy, its keys, a round's states": 16 * counts.proxy + 4 * shape.vocabulary * DIM + states,
    }
    total = sum(found.values())
    return {name: size / GB for name, size in found.items()} | {"together": total / GB, "of": layout.gpu.memory / GB}


def lora_memory(layout: Layout, counts: Counts, job: Job) -> dict[str, float]:
    """The same for training LoRA adapters with activation checkpoints, on micro-batches of `MICRO_BATCH` responses a replica."""
    shape, gpus = counts.shape, layout.split
    tokens = MICRO_BATCH * (job.prompt_tokens + job.new_tokens)
    found = {
        "weights": counts.weights / gpus,
        "adapters, gradients, Adam": 16 * counts.lora / gpus,
        "activations": 2 * shape.layers * tokens * shape.width + 34 * tokens * shape.width / gpus,
        "logits": 2 * 4 * tokens * shape.vocabulary,
    }
    return {name: size / GB for name, size in found.items()} | {
        "together": sum(found.values()) / GB,
        "of": layout.gpu.memory / GB,
    }


def step_seconds(layout: Layout, counts: Counts, job: Job, assumed: Assumed) -> float:
    """A plain decoding step of `rows`, at the mean length."""
    shape, gpu = counts.shape, layout.gpu
    context = job.prompt_tokens + job.new_tokens / 2
    read = (2 * shape.read_weights + layout.rows * context * shape.kv_bytes()) / layout.split
    arithmetic = 2 * shape.read_weights * layout.rows / layout.split
    busy = max(read / (gpu.bandwidth * assumed.bandwidth), arithmetic / (gpu.flops * assumed.flops))
    return busy + 2 * shape.layers * assumed.reduce + layout.rows * reduced(layout, shape) / gpu.link + assumed.step


def reduced(layout: Layout, shape: Shape) -> float:
    """Bytes that a GPU moves within its replica for a token: two all-reduces a layer, as rings."""
    return 2 * (layout.split - 1) / layout.split * 2 * shape.layers * 2 * shape.width


def sampling_seconds(layout: Layout, counts: Counts, job: Job, assumed: Assumed) -> float:
    """All responses of a round, without guidance. The prompt of a group is fed once."""
    waves = job.responses / (layout.replicas * layout.rows)
    fed = layout.rows / job.group * job.prompt_tokens
    prompts = 2 * counts.shape.read_weights * fed / (layout.split * layout.gpu.flops * assumed.flops)
    return waves * (prompts + job.new_tokens * step_seconds(layout, counts, job, assumed))


def proxy_round(layout: Layout, counts: Counts, job: Job, assumed: Assumed) -> dict[str, float]:
    """Seconds of a round of Proxy-RLHF, without the reward, and of all rounds."""
    moved = 4 * counts.proxy * layout.replicas + counts.record() * job.positions
    found = {
        "sampling, s": sampling_seconds(layout, counts, job, assumed) / assumed.guided,
        "optimising, s": counts.optimise(job) / (layout.gpus * layout.gpu.float32 * assumed.training),
        "network, s": moved / assumed.network,
    }
    return _with_totals(found, layout, job)


def lora_round(layout: Layout, counts: Counts, job: Job, assumed: Assumed) -> dict[str, float]:
    """The same for LoRA-RLOO: a reference pass, and a forward, a repeated forward and a backward pass through the base."""
    tokens = job.responses * (job.prompt_tokens + job.new_tokens)
    flops = 8 * counts.shape.read_weights * tokens
    moved = 2 * counts.lora * layout.replicas + 2 * 4 * counts.lora * job.minibatches
    within = 4 * tokens / layout.replicas * reduced(layout, counts.shape) / layout.gpu.link  # four passes
    found = {
        "sampling, s": sampling_seconds(layout, counts, job, assumed),
        "optimising, s": flops / (layout.gpus * layout.gpu.flops * assumed.training) + within,
        "network, s": moved / assumed.network,
    }
    return _with_totals(found, layout, job)


def _with_totals(found: dict[str, float], layout: Layout, job: Job) -> dict[str, float]:
    hours = sum(found.values()) * job.rounds / 3600
    return found | {"a round, s": sum(found.values()), "hours": hours, "GPU hours": hours * layout.gpus}


def traffic(counts: Counts, job: Job, layout: Layout) -> dict[str, float]:
    """GB of a round that travel between workers, and within a replica."""
    fed = job.positions + job.responses / job.group * job.prompt_tokens
    return {
        "the proxy, out": 4 * counts.proxy * layout.replicas / GB,
        "records, back": counts.record() * job.positions / GB,
        "LoRA adapters, out": 2 * counts.lora * layout.replicas / GB,
        "within a replica, each GPU": reduced(layout, counts.shape) * fed / layout.replicas / GB,
    }


def tables(assumed: Assumed, job: Job, shape: Shape) -> Rows:
    """Every row of the plan. Labels begin with the table's name."""
    counts, rows = Counts(shape), Rows()
    for name, layout in LAYOUTS.items():
        proxy, lora = proxy_round(layout, counts, job, assumed), lora_round(layout, counts, job, assumed)
        rows[f"memory, {name}"] = memory(layout, counts, job)
        rows[f"LoRA memory, {name}"] = lora_memory(layout, counts, job)
        rows[f"proxy, {name}"] = proxy
        rows[f"LoRA-RLOO, {name}"] = lora | {"GPU hours / the proxy's": lora["GPU hours"] / proxy["GPU hours"]}
        rows[f"bytes, {name}"] = traffic(counts, job, layout)
    return rows


def with_measured(assumed: Assumed, gpu: Path) -> Assumed:
    """The assumptions with the share of the bandwidth that `make gpu` found for guided decoding of 7 billion parameters.

    Raises:
        ValueError: the run had no GPU, or this row failed.
    """
    found = read_json(gpu)
    shares = [
        row["share of bandwidth"]
        for row in found["rows"]
        if row["what"] == "7B, batch 16: our loop, guided" and row.get("share of bandwidth")
    ]
    if found["toy"] or not shares:
        raise ValueError(f"{gpu} has no share of the bandwidth of a GPU for guided decoding of 7B at batch 16.")
    return replace(assumed, bandwidth=shares[0], guided=1.0)


def facts(assumed: Assumed, job: Job, counts: Counts) -> dict[str, Any]:
    """What the rows follow from."""
    return {
        "parameters": counts.shape.parameters,
        "proxy": counts.proxy,
        "LoRA": counts.lora,
        "bytes of a record": counts.record(),
        "rounds": job.rounds,
        **{f"assumed {each.name}": getattr(assumed, each.name) for each in fields(assumed)},
    }


def main() -> None:
    """Count, print and write."""
    given = script_options(__doc__, gpu={"type": Path, "help": "gpu.json of `make gpu`. No summary is written then."})
    assumed, job, counts = Assumed(), Job(), Counts(SHAPES["70B"])
    if given.gpu is not None:
        assumed = with_measured(assumed, given.gpu)
    rows = tables(assumed, job, counts.shape)
    for label, row in rows.items():
        print(f"{label:24}", "  ".join(f"{name} {value:,.4g}" for name, value in row.items()))
    for name, value in facts(assumed, job, counts).items():
        print(f"{name}: {value:,.6g}")
    if given.gpu is None and not given.smoke:
        about = facts(assumed, job, counts)
        write_summary("scale-plan", "python -m experiments.scale_plan", "a Llama of 70 billion, counted", rows, about)


if __name__ == "__main__":
    main()
