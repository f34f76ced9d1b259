"""The flags of `generate`, `chat` and `evaluate` that define the policy. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from frugalign.options import groups
from frugalign.options.declare import REQUIRED, defaults, notes, option
from frugalign.options.kinds import COUNT, FINITE, NON_NEGATIVE

_NOT_IN_SPEC = ("use_cpu",)


@dataclass(kw_only=True)
@defaults(model_name_or_path=REQUIRED)
@notes(model_name_or_path="It is the base.", principles="The model answers under them.")
class PolicyOptions(groups.Principles, groups.ModelAdapter, groups.Spread, groups.Model, section="policy"):
    """A base model and the parts on top of it. Every flag except `use_cpu` and `strength` is a field of `PolicySpec`."""

    proxy: list[str] = option(
        [],
        "A proxy that guides the base, as a folder or hub id: DIR, DIR@STRENGTH or name=DIR@STRENGTH. Repeatable; several compose.",
    )
    strength: float = option(1.0, "Strength λ of proxies given without one. 0 is the base.", NON_NEGATIVE)
    steering: str | None = option(None, "A steering vector of the base, as a folder or hub id: DIR or DIR@STRENGTH.")
    policy: str | None = option(None, "A whole model that answers in place of the base.")
    best_of_n: int | None = option(None, "Sample this many completions and keep the best by --selection_reward.", COUNT)
    selection_reward: list[str] = option([], "Reward for --best_of_n: [name=]SPEC. Repeatable; several are summed.")
    guiding_reward: list[str] = option(
        [],
        "Reward-guided decoding (ARGS): add this reward of the text so far to the logits of the likeliest tokens, at every position. "
        "[name=]SPEC, repeatable; several are summed.",
    )
    guiding_weight: float = option(1.0, "Weight w of --guiding_reward.", FINITE)
    guiding_top_k: int = option(
        10, "How many tokens --guiding_reward scores at each position, with one reward call each.", COUNT
    )
    decoding_reward_weights: list[float] | None = option(
        None, "Weights of several selection or guiding rewards. Default: 1 each.", FINITE
    )

    def policy_values(self) -> dict[str, Any]:
        """The values that `PolicySpec.from_dict` reads. Empty lists are left out."""
        names = [name for name in PolicyOptions.__dataclass_fields__ if name not in _NOT_IN_SPEC]
        values = {name: getattr(self, name) for name in names}
        values["device_map"] = self.device_map or ("cpu" if self.use_cpu else None)
        return {name: value for name, value in values.items() if value not in (None, [])}
