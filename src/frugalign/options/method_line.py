"""Options of a study's lines that no training config has. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from frugalign.options import groups
from frugalign.options.declare import like, option
from frugalign.options.kinds import COUNT, FINITE, POSITIVE, TEXT
from frugalign.options.policy import PolicyOptions


@dataclass(eq=False, repr=False)
class LineOptions(groups.Lora):
    """The names in `Method.options`, with the rules for their values."""

    train: Literal["lora", "full"] = like(groups.Lora, "train", "lora")
    n: int = option(4, "Completions per prompt, of which the best by the reward is kept.", COUNT)
    top_k: int = option(10, "How many tokens the guiding reward scores at each position.", COUNT)
    weight: float = option(1.0, "Weight of the guiding reward.", FINITE)
    layer: float = option(
        0.5,
        "The layer whose states are steered: its number from 1, or below 1 its place as a share of the depth.",
        POSITIVE,
    )
    strength: float = like(
        PolicyOptions, "strength", 1.0, "Here of a steering vector; a negative one turns it round.", FINITE
    )
    in_context: str | None = option(
        None,
        "What precedes every prompt in the test, as `--principles` of `generate` does: a system prompt, examples, or both.",
        TEXT,
    )
    sample: int = like(groups.Generations, "num_generations", 4, "Here of the base; they are ranked into pairs.")
