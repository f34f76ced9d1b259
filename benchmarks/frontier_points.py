"""From trajectories of (KL, reward) to a method's frontier: pure functions on what the runs measured on validation prompts."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from benchmarks.frontier_settings import LEVELS, P_T_AT_FIRST_LEVEL


def admitted(run: dict[str, Any], level: float) -> bool:
    """Whether a run may stand at a KL level: at the first one a restriction has to be a fine one."""
    return level > LEVELS[0] or run["options"].get("p_t", 0.0) <= P_T_AT_FIRST_LEVEL


def best_at(runs: list[dict[str, Any]], level: float) -> float | None:
    """Best validation reward at KL ≤ `level`, interpolated along one trajectory between neighbouring checkpoints.

    The interpolation is a policy that exists: drawing for every prompt which of the two checkpoints answers has the mixed reward
    exactly and, KL being convex, at most the mixed KL.
    """
    found = []
    for run in runs:
        points = run["trajectory"]
        found += [point["reward"] for point in points if point["kl"] <= level]
        for first, second in pairwise(points):
            low, high = sorted((first, second), key=lambda point: point["kl"])
            if low["kl"] <= level < high["kl"]:
                share = (level - low["kl"]) / (high["kl"] - low["kl"])
                found.append(low["reward"] + share * (high["reward"] - low["reward"]))
    return max(found, default=None)


def best_checkpoint(runs: list[dict[str, Any]], level: float) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """(run, point) of the best validation reward among checkpoints at KL ≤ `level`."""
    found = [(run, point) for run in runs for point in run["trajectory"] if point["kl"] <= level]
    return max(found, key=lambda pair: pair[1]["reward"], default=None)
