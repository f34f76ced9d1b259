"""Means of logged numbers over processes, and over the steps since the last log line."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

Share = tuple[Tensor, Tensor | float]
"""A sum and a count."""


def mean_of(values: Tensor) -> Share:
    """These values' sum and count, whose mean is taken over all processes."""
    return values.detach().float().sum(), float(values.numel())


class RunningMeans:
    """Running means, separate for training and evaluation (`train`, `eval`)."""

    def __init__(self, accelerator: Any) -> None:
        self.accelerator = accelerator
        self.steps: dict[str, dict[str, list[float]]] = {"train": defaultdict(list), "eval": defaultdict(list)}

    def note(self, mode: str, found: Mapping[str, Share]) -> None:
        """Add a step's numbers: each is the sum divided by the count over all processes, or 0 if nothing was counted."""
        device = self.accelerator.device
        sums, counts = zip(*found.values(), strict=True)
        both = torch.stack([torch.stack([torch.as_tensor(each, device=device).float() for each in side]) for side in (sums, counts)])  # fmt: skip
        total, number = self.accelerator.reduce(both, "sum").tolist()
        for name, value, size in zip(found, total, number, strict=True):
            self.steps[mode][name].append(value / size if size else 0.0)

    def take(self, mode: str) -> dict[str, float]:
        """The means since the last call."""
        found = {name: sum(values) / len(values) for name, values in self.steps[mode].items() if values}
        self.steps[mode].clear()
        return found
