"""What a run costs. Every trainer, generator and evaluator counts with this one small object.

Tokens, calls and steps are exact counts; seconds are wall-clock by phase; memory is the process's peak. Nothing here
imports torch: device memory is read only if torch is already loaded.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypedDict

from frugalign.base.files import write_json_atomic

PHASES = ("load", "rollout", "reward", "read", "optimise", "evaluate", "save")
"""In the order of pages. `rollout` samples; `read` passes stored answers through a model once, before training."""
_COUNTERS = ("lm_forward_tokens", "generated_tokens", "reward_calls", "optimizer_steps")


class Counts(TypedDict):
    """The exact counters of a ledger."""

    lm_forward_tokens: int
    generated_tokens: int
    reward_calls: int
    optimizer_steps: int


class Costs(TypedDict, total=False):
    """A ledger as JSON. `Ledger` says what each number counts. An older file may lack some of them.

    `cpu_seconds`: of the process, which a study measures for each of its trainings.
    """

    lm_forward_tokens: int
    generated_tokens: int
    reward_calls: int
    optimizer_steps: int
    trainable_parameters: int | None
    base_parameters: int | None
    shares: dict[str, float | None]
    seconds: dict[str, float]
    wall_clock_seconds: float
    cpu_seconds: float
    peak_memory_mb: float


@dataclass
class Ledger:
    """Counters of one run.

    `lm_forward_tokens`: real (unpadded) positions fed through a language model. `generated_tokens`: tokens emitted.
    `reward_calls`: completions scored, once per reward. `seconds`: wall-clock time by phase; a nested phase counts in
    both.
    """

    lm_forward_tokens: int = 0
    generated_tokens: int = 0
    reward_calls: int = 0
    optimizer_steps: int = 0
    trainable_parameters: int | None = None
    base_parameters: int | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    _peak_memory_mb: float = 0.0
    _wall_clock_before: float = 0.0
    _started: float = field(default_factory=time.perf_counter)

    def count(
        self, lm_forward_tokens: int = 0, generated_tokens: int = 0, reward_calls: int = 0, optimizer_steps: int = 0
    ) -> None:
        """Add to the counters."""
        self.lm_forward_tokens += lm_forward_tokens
        self.generated_tokens += generated_tokens
        self.reward_calls += reward_calls
        self.optimizer_steps += optimizer_steps

    def counts(self) -> Counts:
        """The counters by name, as `count` takes them."""
        return {
            "lm_forward_tokens": self.lm_forward_tokens,
            "generated_tokens": self.generated_tokens,
            "reward_calls": self.reward_calls,
            "optimizer_steps": self.optimizer_steps,
        }

    @contextmanager
    def uncounted(self) -> Iterator[None]:
        """Count nothing within the block except seconds: for work that a resumed run repeats and has counted before."""
        before = self.counts()
        try:
            yield
        finally:
            for name, value in before.items():
                setattr(self, name, value)

    def add(self, other: Ledger, wall_clock: float = 0.0) -> None:
        """Add another ledger's counters and seconds by phase. The higher memory peak is kept.

        `wall_clock`: seconds of the other run that this ledger's clock did not measure.
        """
        self.count(other.lm_forward_tokens, other.generated_tokens, other.reward_calls, other.optimizer_steps)
        for name, seconds in other.seconds.items():
            self.add_seconds(name, seconds)
        self._wall_clock_before += wall_clock
        self._peak_memory_mb = max(self._peak_memory_mb, other._peak_memory_mb)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Add the wall-clock seconds of the block to `seconds[name]`, also when it raises."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.add_seconds(name, time.perf_counter() - started)

    def add_seconds(self, name: str, seconds: float) -> None:
        """Add seconds that were measured elsewhere to a phase."""
        self.seconds[name] = self.seconds.get(name, 0.0) + seconds

    def set_parameters(self, *, trainable: int | None = None, base: int | None = None) -> None:
        """How many numbers the run trains, and how many the frozen base holds."""
        if trainable is not None:
            self.trainable_parameters = trainable
        if base is not None:
            self.base_parameters = base

    @property
    def wall_clock_seconds(self) -> float:
        """Seconds since this ledger was created, plus those of the runs it resumed."""
        return self._wall_clock_before + time.perf_counter() - self._started

    @property
    def shares(self) -> dict[str, float | None]:
        """Trainable parameters as a share of the base, of full fine-tuning, and of PPO (two networks of base size)."""
        share = None
        if self.trainable_parameters is not None and self.base_parameters:
            share = self.trainable_parameters / self.base_parameters
        return {"of_base": share, "of_full_finetuning": share, "of_ppo": None if share is None else share / 2}

    def to_dict(self) -> Costs:
        """Everything as JSON-ready values."""
        self._peak_memory_mb = max(self._peak_memory_mb, _peak_memory_mb())
        return {
            "lm_forward_tokens": self.lm_forward_tokens,
            "generated_tokens": self.generated_tokens,
            "reward_calls": self.reward_calls,
            "optimizer_steps": self.optimizer_steps,
            "trainable_parameters": self.trainable_parameters,
            "base_parameters": self.base_parameters,
            "shares": self.shares,
            "seconds": {name: round(value, 3) for name, value in self.seconds.items()},
            "wall_clock_seconds": round(self.wall_clock_seconds, 3),
            "peak_memory_mb": round(self._peak_memory_mb, 1),
        }

    def load_dict(self, saved: Mapping[str, Any]) -> None:
        """Resume from the values that `to_dict` returned. Counters and seconds continue; the higher memory peak is
        kept."""
        for name in _COUNTERS:
            setattr(self, name, int(saved.get(name, 0)))
        self.set_parameters(trainable=saved.get("trainable_parameters"), base=saved.get("base_parameters"))
        self.seconds = {str(name): float(value) for name, value in saved.get("seconds", {}).items()}
        self._wall_clock_before = float(saved.get("wall_clock_seconds", 0.0))
        self._started = time.perf_counter()
        self._peak_memory_mb = float(saved.get("peak_memory_mb", 0.0))

    def save(self, path: str | Path) -> None:
        """Write `to_dict` as JSON, atomically.

        Raises:
            FrugalignError: the file cannot be written.
        """
        write_json_atomic(path, self.to_dict())

    def table(self) -> list[tuple[str, str]]:
        """The rows that reports and the terminal show: (what, value)."""
        costs = self.to_dict()
        rows = [
            ("LM forward tokens", f"{self.lm_forward_tokens:,}"),
            ("Generated tokens", f"{self.generated_tokens:,}"),
            ("Reward calls", f"{self.reward_calls:,}"),
            ("Optimizer steps", f"{self.optimizer_steps:,}"),
        ]
        if self.trainable_parameters is not None:
            rows.append(("Trainable parameters", f"{self.trainable_parameters:,}"))
            labels = {"of_base": "… share of the base", "of_ppo": "… share of PPO's two networks"}
            shares = {label: self.shares[key] for key, label in labels.items()}
            rows += [(label, f"{100 * share:.2f} %") for label, share in shares.items() if share is not None]
        rows += [(f"Seconds, {name}", f"{value:,.1f}") for name, value in costs["seconds"].items()]
        rows += [
            ("Seconds, all", f"{costs['wall_clock_seconds']:,.1f}"),
            ("Peak memory", f"{costs['peak_memory_mb']:,.0f} MB"),
        ]
        return rows


def _peak_memory_mb() -> float:
    """The process's peak resident memory, and the accelerator's peak on top, in MB (2^20 bytes)."""
    try:
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        megabytes = peak / 2**20 if sys.platform == "darwin" else peak / 2**10
    except ImportError:  # not a Unix
        megabytes = 0.0
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized():
        megabytes += sum(torch.cuda.max_memory_allocated(device) for device in range(torch.cuda.device_count())) / 2**20
    return float(megabytes)
