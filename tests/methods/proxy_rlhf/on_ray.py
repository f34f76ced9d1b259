"""Not a test: a small `ProxyTrainer` whose rollouts are made in pieces, here or by workers, and a killer of workers."""

from __future__ import annotations

import os
import random
import signal
import threading
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
    """Inside the block, workers of the pool are killed at `times` random moments: idle, busy, and with no other one alive."""
    draw, stop, killed = random.Random(seed), threading.Event(), list[int]()

    def kill() -> None:
        while len(killed) < times and not stop.wait(draw.uniform(0.0, 0.3)):
            alive = [pid for pid in sorted(pool.pids.values()) if pid not in killed]
            for pid in draw.sample(alive, min(1, len(alive))):
                os.kill(pid, signal.SIGKILL)
                killed.append(pid)

    thread = threading.Thread(target=kill)
    thread.start()
    try:
        yield killed
    finally:
        stop.set()
        thread.join()
