"""The flags that say what answers: those of `generate`, `chat` and `evaluate`. No torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

_NOT_THE_POLICYS = ("use_cpu",)


@dataclass(kw_only=True)
class PolicyOptions:
    """A base and what is put on top of it; every flag is a field of `PolicySpec`, but `use_cpu` and `strength`."""

    model_name_or_path: str = field(metadata={"help": "The base: hub id, folder, or package.module:attribute."})
    principles: str | None = field(
        default=None,
        metadata={"help": "Answer under these principles: a set that ships, a file, or package.module:attribute."},
    )
    proxy: list[str] = field(
        default_factory=list,
        metadata={
            "help": "A proxy that guides the base: folder or hub id, DIR, DIR@STRENGTH or name=DIR@STRENGTH. Repeatable: several compose."
        },
    )
    strength: float = field(
        default=1.0, metadata={"help": "Strength λ of proxies without their own: 0 is the restricted base."}
    )
    adapter: str | None = field(default=None, metadata={"help": "A PEFT adapter of the base."})
    policy: str | None = field(default=None, metadata={"help": "A whole model that answers in place of the base."})
    best_of_n: int | None = field(
        default=None, metadata={"help": "Draw this many completions and keep the best by --selection_reward."}
    )
    selection_reward: list[str] = field(
        default_factory=list, metadata={"help": "What --best_of_n chooses by: [name=]SPEC, repeatable; summed."}
    )
    guiding_reward: list[str] = field(
        default_factory=list,
        metadata={
            "help": "Reward-guided decoding (ARGS): this reward of the text so far, [name=]SPEC, repeatable, summed, is added to the "
            "logits of the likeliest tokens at every position."
        },
    )
    guiding_weight: float = field(default=1.0, metadata={"help": "Weight w of --guiding_reward."})
    guiding_top_k: int = field(
        default=10, metadata={"help": "Tokens that --guiding_reward scores at a position, one reward call each."}
    )
    decoding_reward_weights: list[float] | None = field(
        default=None, metadata={"help": "Weights of several selection or guiding rewards. Default: 1 each."}
    )
    revision: str | None = field(default=None, metadata={"help": "Revision of the base on the hub."})
    dtype: str | None = field(default=None, metadata={"help": "Dtype of the base: float32, bfloat16, float16, auto."})
    device_map: str | None = field(default=None, metadata={"help": "Device map of the base, as in transformers."})
    load_in_4bit: bool = field(default=False, metadata={"help": "Load the base in 4-bit NF4 (needs bitsandbytes)."})
    use_cpu: bool = field(default=False, metadata={"help": "Stay on the CPU where there is a GPU."})

    def policy_values(self) -> dict[str, Any]:
        """What `PolicySpec.from_dict` reads; empty lists are left out."""
        names = [name for name in PolicyOptions.__dataclass_fields__ if name not in _NOT_THE_POLICYS]
        values = {name: getattr(self, name) for name in names}
        values["device_map"] = self.device_map or ("cpu" if self.use_cpu else None)
        return {name: value for name, value in values.items() if value not in (None, [])}
