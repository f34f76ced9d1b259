"""Not a test: small rounds of scored responses."""

from __future__ import annotations

import math
from typing import Any

import torch

from frugalign.methods.psle.config import PSLEConfig
from frugalign.methods.psle.responses import (
    ScoredResponses,
)

NAN = float("nan")
TAU = 0.25
SCALE = 2.0  # a bar of exactly ½


def config(**options: Any) -> PSLEConfig:
    return PSLEConfig(output_dir="unused", use_cpu=True, **options)


def scored(rewards: list[list[float]], lengths: list[list[int]] | None = None) -> ScoredResponses:
    """Responses of these rewards `[P, 2k]`; their texts name prompt and place, their ids are as many as `lengths` says (default 1)."""
    shape = lengths or [[1] * len(row) for row in rewards]
    return ScoredResponses(
        rows=[10 * prompt for prompt in range(len(rewards))],
        prompts=[f"prompt {prompt}" for prompt in range(len(rewards))],
        completions=[[f"{prompt}.{place}" for place in range(len(row))] for prompt, row in enumerate(rewards)],
        completion_ids=[[[5 + place] * n for place, n in enumerate(row)] for row in shape],
        rewards=torch.tensor(rewards, dtype=torch.float64),
        by_name={"one": [[None if math.isnan(value) else value for value in row] for row in rewards]},
    )


SMALL = scored([[0.0, 1.0], [0.0, 0.5], [1.0, 1.0], [2.0, 0.0], [NAN, 3.0]])
"""k = 1. Gains of 1 (clear), ½ (exactly at the bar), 0 (a tie), −2, and one that nobody knows."""

WIDE = scored([[0.0, 3.0, 1.0, 3.0], [1.0, 0.0, NAN, 2.0]])
"""k = 2: couples (0, 1) and (3, 3); (1, NaN) and (0, 2). Gains of 1, 0, unknown, 2."""
