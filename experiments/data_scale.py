"""Memory and seconds until the first batch, from 10,000 to 1,000,000 prompts and pairs.

    python -m experiments.data_scale [--smoke] [10000 100000 1000000]

Prompts (JSON lines) and pairs (Parquet) are written in shards of 20,000 rows into a temporary folder. Every measurement is a process of its own, which
loads the sandbox's model, resets the kernel's peak, reads the data as the command does, and stops at the first batch. "First" reads, checks and encodes
every row; "again" is a later start, which goes to the middle of the epoch, as a resumed run does. Anonymous memory is the process's own; mapped
memory is files that the system drops when it needs room. Both count from the loaded model on. Seconds are the process's own, so that other work on
the machine does not count; the summary has those of the clock too. What the summary has already is not measured again: delete it to begin
anew. It runs on Linux.
"""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from experiments.summary import RESULTS, script_options, write_summary

ROWS = [10_000, 100_000, 1_000_000]
SHARD = 20_000
BATCH = 64
WORDS = [
    "draught",
    "balm",
    "poison",
    "fever",
    "horse",
    "keeper",
    "merchant",
    "winter",
    "road",
    "herb",
    "root",
    "market",
]
MEGABYTE = 1e6


def main() -> None:
    """Write the data, measure every kind of reading at every size, print the table and write the summary."""
    options = script_options(
        __doc__,
        rows={"type": int, "nargs": "*", "help": "numbers of rows; default: 10000 100000 1000000"},
        only={"action": "append", "help": "one of the readings: prompts, pairs, features, rerank; all by default"},
        kind={"help": "what to measure in this process, on the data in --data"},
        data={"help": "the folder of the data"},
    )
    if options.kind:
        print(json.dumps(measured(options.kind, Path(options.data))))
        return
    summary = RESULTS / "data-scale.json"
    rows: dict[str, dict[str, Any]] = {}
    if summary.is_file() and not options.smoke:
        rows = json.loads(summary.read_text("utf-8"))["rows"]
    for n in options.rows or ([2_000] if options.smoke else ROWS):
        with tempfile.TemporaryDirectory() as folder:
            wanted = [kind for kind in options.only or READINGS if f"{kind}, {n:,}" not in rows]
            if wanted:
                write_data(Path(folder), n)
            for kind in wanted:
                first, again = (in_a_process(kind, Path(folder)) for _ in range(2))
                found = {f"{name}, first": value for name, value in first.items()}
                rows[f"{kind}, {n:,}"] = found | {f"{name}, again": value for name, value in again.items()}
                print(f"{kind}, {n:,}", rows[f"{kind}, {n:,}"], flush=True)
                if not options.smoke:
                    ordered = sorted(rows, key=lambda label: ([*READINGS].index(label.split(",")[0]), len(label)))
                    rows = {label: rows[label] for label in ordered}
                    write_summary("data-scale", "python -m experiments.data_scale", "the sandbox's", rows)
    print(table(rows))


def write_data(folder: Path, n: int) -> None:
    """`n` prompts and `n` pairs, in shards."""
    import random

    import pyarrow as pa
    import pyarrow.parquet as pq

    draw = random.Random(0)

    def text(words: int) -> str:
        return " ".join(draw.choices(WORDS, k=words))

    for name in ("prompts", "pairs"):
        (folder / name).mkdir()
    for shard, start in enumerate(range(0, n, SHARD)):
        numbers = range(start, min(start + SHARD, n))
        prompts = [f"{text(12)} {number}?" for number in numbers]
        lines = (
            json.dumps({"prompt": prompt, "source": f"page {number}"}) + "\n" for number, prompt in enumerate(prompts)
        )
        (folder / "prompts" / f"train-{shard:05d}.jsonl").write_text("".join(lines), encoding="utf-8")
        answers = {side: [f" {text(15)}" for _ in numbers] for side in ("chosen", "rejected")}
        pq.write_table(pa.table({"prompt": prompts, **answers}), folder / "pairs" / f"train-{shard:05d}.parquet")


def in_a_process(kind: str, folder: Path) -> dict[str, float]:
    """One measurement, in a process with a cache beside the data."""
    command = [sys.executable, "-m", "experiments.data_scale", "--kind", kind, "--data", str(folder)]
    environment = os.environ | {"HF_DATASETS_CACHE": str(folder / "cache")}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    print(f"  {kind}: {found}", flush=True)
    return found


# -- in a process ------------------------------------------------------------------------------------------------------


class Peak:
    """The most anonymous and mapped memory while the block runs, looked at every 10 ms."""

    def __enter__(self) -> Peak:
        self._start, self._stop = _memory(), threading.Event()
        self.most = dict(self._start)
        self._thread = threading.Thread(target=self._look)
        self._thread.start()
        return self

    def _look(self) -> None:
        while not self._stop.wait(0.01):
            self.most = {name: max(value, self.most[name]) for name, value in _memory().items()}

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def grown(self, name: str) -> float:
        """Megabytes above the start of the block."""
        return self.most[name] - self._start[name]


def _memory() -> dict[str, float]:
    lines = Path("/proc/self/status").read_text("utf-8").splitlines()
    values = {line.split(":")[0]: line.split()[1] for line in lines if line.startswith("Rss")}
    return {name: float(values[name]) * 1024 / MEGABYTE for name in ("RssAnon", "RssFile")}


def measured(kind: str, folder: Path) -> dict[str, float]:
    """Megabytes and seconds of one reading. A cache in `folder` makes it a later start, which goes to the middle."""
    from frugalign.engines.loading import load_model

    gc.set_threshold(100_000, 10, 10)  # as the command line does
    base = load_model("frugalign.sandbox:model")
    marker = folder / "cache" / f"{kind}.done"
    read = READINGS[kind]
    # What a first use imports and compiles is no part of the growth with the rows.
    warm_up(folder, kind, base)
    wall, own = time.perf_counter(), time.process_time()
    with Peak() as peak:
        batch = read(folder, base, marker.exists())
        wall, own = time.perf_counter() - wall, time.process_time() - own
    assert batch
    marker.parent.mkdir(exist_ok=True)
    marker.touch()
    return {"s": wall, "CPU s": own, "anonymous MB": peak.grown("RssAnon"), "mapped MB": peak.grown("RssFile")}


def warm_up(folder: Path, kind: str, base: Any) -> None:
    """Read a hundred rows the same way."""
    with tempfile.TemporaryDirectory() as small:
        write_data(Path(small), 100)
        READINGS[kind](Path(small), base, False)


def as_the_proxy_reads_prompts(folder: Path, base: Any, halfway: bool) -> Any:
    """`frugalign proxy`: the prompts of the first round, or of one in the middle."""
    from frugalign.data import training_prompts
    from frugalign.data.splits import rows_fingerprint
    from frugalign.data.templating import Rendering
    from frugalign.methods.proxy_rlhf.config import ProxyConfig
    from frugalign.methods.proxy_rlhf.prompts import Prompts
    from frugalign.methods.proxy_rlhf.schedule import Schedule

    train, held_out, _ = training_prompts(str(folder / "prompts"), hold_out=True)
    assert held_out is not None
    args = ProxyConfig(output_dir=str(folder / "run"), max_new_tokens=32, use_cpu=True, report_to="none")
    rows_fingerprint(train)
    prompts = Prompts.encode(train, base, args, Rendering("raw"))
    Prompts.encode(held_out, base, args, Rendering("raw"))
    schedule = Schedule(len(train), min(BATCH, len(train)), 0)
    _, chosen = schedule.prompts(schedule.rounds_per_epoch // 2 if halfway else 0)
    return [prompts.ids[row] for row in chosen], train[chosen]


def stored_pairs(folder: Path) -> tuple[Any, Any]:
    """The pairs of `frugalign proxy` on stored data, and its options."""
    from frugalign.methods.proxy_stored.config import StoredProxyConfig
    from frugalign.methods.proxy_stored.run import read_stored

    fixed: dict[str, Any] = {"use_cpu": True, "report_to": "none", "prompt_format": "raw"}
    config = StoredProxyConfig(dataset_name=str(folder / "pairs"), output_dir=str(folder / "run"), **fixed)
    return read_stored(config).train, config


def as_stored_data_are_read(folder: Path, base: Any, halfway: bool) -> Any:
    """`frugalign proxy` on pairs: the token ids of a batch of examples."""
    from frugalign.methods.proxy_stored.examples import examples_of

    train, config = stored_pairs(folder)
    examples = examples_of("pairs", train, base, config)
    start = len(examples) // 2 if halfway else 0
    rows = examples.rows(range(start, min(start + BATCH, len(examples))))
    return [(examples.answers.prompt_ids[row], examples.answers.answer_ids[row]) for row in rows]


def as_features_are_cached(folder: Path, base: Any, halfway: bool) -> Any:
    """The feature cache of those pairs, up to its first pass: its key, its shards, and the ids of the shard that comes next."""
    from frugalign.methods.answer_features import Proposals, answer_features
    from frugalign.methods.proxy_stored.examples import examples_of
    from frugalign.proxy.candidates import Limits
    from frugalign.runs.shard_store import ShardStore

    class Reached(Exception):
        """The first pass would begin."""

    class Store(ShardStore):
        """Stops where the first missing shard would be computed."""

        def shards(self, key: str, number: int, compute: Callable[[list[int]], Iterator[Any]], *, needed: int) -> Any:
            raise Reached(key, number)

    train, config = stored_pairs(folder)
    examples = examples_of("pairs", train, base, config)
    try:
        answer_features(
            base.model,
            base.tokenizer,
            examples.answers,
            Proposals(1.0, Limits(0.01, 16)),
            Store(folder / "states", max_gib=1e6),
        )
    except Reached as reached:
        number = reached.args[1]
    start = len(examples.answers) * (number // 2) // number if halfway else 0
    return examples.answers.answer_ids[start : start + 2 * BATCH]


def as_rerank_reads_pairs(folder: Path, base: Any, halfway: bool) -> Any:
    """`frugalign rerank`: a padded batch of pairs."""
    from types import SimpleNamespace

    import torch

    from frugalign.data.pairs import preference_pairs
    from frugalign.data.splits import pairs_fingerprint
    from frugalign.methods.rerank.collator import PairCollator, encode_pairs

    args = SimpleNamespace(max_length=256, prompt_format="raw", chat_template_kwargs=None)
    train, _, _ = preference_pairs(str(folder / "pairs"), hold_out=True, weights=True)
    pairs_fingerprint(train)
    pairs = encode_pairs(train, base.model, base.tokenizer, args)
    start = len(pairs) // 2 if halfway else 0
    order = torch.randperm(len(pairs), generator=torch.Generator().manual_seed(0))[start : start + BATCH].tolist()
    return PairCollator(0)([pairs[row] for row in order])


READINGS: dict[str, Callable[[Path, Any, bool], Any]] = {
    "prompts": as_the_proxy_reads_prompts,
    "pairs": as_stored_data_are_read,
    "features": as_features_are_cached,
    "rerank": as_rerank_reads_pairs,
}


def table(rows: dict[str, dict[str, Any]]) -> str:
    """The summary as a Markdown table."""
    columns = ["CPU s, first", "anonymous MB, first", "CPU s, again", "anonymous MB, again", "mapped MB, again"]
    lines = [f"| rows | {' | '.join(columns)} |", f"|---{'|---:' * len(columns)}|"]
    lines += [f"| {label} | {' | '.join(f'{row[name]:.3g}' for name in columns)} |" for label, row in rows.items()]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
