"""How an evaluation samples and how much. No torch."""

from __future__ import annotations

from dataclasses import dataclass

from frugalign.options.check import check_value
from frugalign.options.kinds import COUNT
from frugalign.policies.spec import SamplingSettings


@dataclass(frozen=True)
class EvaluationSettings(SamplingSettings):
    """`SamplingSettings` (by default 128 new tokens), and how much is sampled.

    Args:
        num_samples: completions per prompt; intervals resample prompts, never single completions.
        batch_size: completions generated together; no result depends on it.
        split: of the prompts: train, test, all or another one. Default: test where there is one; the held-out rows where the policy was
            trained on this data; else all.

    Raises:
        FrugalignError: a number that is not above 0.
    """

    num_samples: int = 1
    batch_size: int = 64
    split: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("num_samples", "batch_size"):
            check_value(name, getattr(self, name), COUNT)
