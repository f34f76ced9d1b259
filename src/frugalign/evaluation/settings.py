"""Settings of an evaluation. No torch."""

from __future__ import annotations

from dataclasses import dataclass

from frugalign.options.check import check_value
from frugalign.options.kinds import COUNT
from frugalign.policies.spec import SamplingSettings


@dataclass(frozen=True)
class EvaluationSettings(SamplingSettings):
    """`SamplingSettings` (128 new tokens by default) and the size of the evaluation.

    Args:
        num_samples: completions per prompt. Intervals resample prompts, never single completions.
        batch_size: completions generated together. Results do not depend on it.
        split: the prompts' split: train, test, all or another one. Default: test if it exists; the held-out rows if the policy was
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
