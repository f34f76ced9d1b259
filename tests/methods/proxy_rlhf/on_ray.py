"""Not a test: a small `ProxyTrainer` whose rollouts are made in pieces, here or by workers, and a killer of workers."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.methods.proxy_rlhf.small_trainer import dataset, short
from tests.two_layers import two_layers

from frugalign.engines.loading import load_model
from frugalign.methods.proxy_rlhf import ProxyConfig, ProxyTrainer

TWO_WORKERS = {"ray": "local", "ray_workers": 2, "ray_cpus": 0.5}


def trainer(folder: Path, **options: Any) -> ProxyTrainer:
    """Four prompts, four completions each, in pieces of one prompt; two steps a rollout."""
    given = {
        "max_steps": 6,
        "num_iterations": 1,
        "max_new_tokens": 8,
        "num_generations": 4,
        "per_device_train_batch_size": 16,
        "sampling_batch_size": 4,
        "p_t": 1e-3,
        "logging_steps": 2,
        "save_strategy": "no",
        "disable_tqdm": True,
        "use_cpu": True,
    }
    args = ProxyConfig(output_dir=str(folder), **(given | options))
    return ProxyTrainer(load_model(two_layers()), short, args, dataset())


@contextmanager
def killing(pool: Any, times: int, seed: int) -> Iterator[list[int]]:
    """Inside the block, a worker is killed at a random moment of a run or just after it, in as many runs of the pool: busy, idle, and with no
    other one alive."""
    draw, killed, run = random.Random(seed), list[int](), pool.run

    def kill(delay: float, over: threading.Event) -> None:
        over.wait(delay)
        while not (alive := [pid for pid in sorted(pool.pids.values()) if pid not in killed]) and not over.is_set():
            time.sleep(0.01)  # until one of those that replace the dead has started
        for pid in draw.sample(alive, min(1, len(alive))):
            os.kill(pid, signal.SIGKILL)
            killed.append(pid)

    def run_and_kill(*given: Any) -> Iterator[Any]:
        over = threading.Event()
        thread = threading.Thread(target=kill, args=(draw.uniform(0.0, 0.3), over))
        if len(killed) < times:
            thread.start()
        yield from run(*given)
        over.set()
        if thread.ident is not None:
            thread.join()

    pool.run = run_and_kill
    try:
        yield killed
    finally:
        pool.run = run
