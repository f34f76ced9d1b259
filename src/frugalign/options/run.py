"""What the methods' options share: how a field is declared, how the model is loaded, and what of a run may change. No torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import MISSING, field, fields
from typing import Any, ClassVar, Literal, get_args, get_origin, get_type_hints

from frugalign.base.errors import FrugalignError

_OF_ONE_START = {"resume_from_checkpoint", "overwrite_output_dir", "from_round"}
_DERIVED = {
    *("accelerator_config", "activation_checkpointing", "dataloader_pin_memory", "debug", "disable_tqdm"),
    *("eval_strategy", "gradient_checkpointing", "remove_unused_columns", "local_rank", "run_name", "logging_dir"),
}
"""Fields that `TrainingArguments` and our configs set themselves."""
_MAY_CHANGE = {
    *_OF_ONE_START,
    *(
        "model_name_or_path",
        "dataset_name",
        "reward",
        "reward_dataset_name",
        "output_dir",
        "dtype",
        "device_map",
        "max_steps",
    ),
    *("logging_steps", "eval_steps", "save_steps", "save_total_limit", "report_to"),
}
"""Where a run's parts lie, how long it goes on, and what is written about it."""


def option(default: Any, text: str) -> Any:
    """A field of an options dataclass with its help; a list is copied for every instance."""
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata={"help": text})
    return field(default=default, metadata={"help": text})


def is_resuming(wanted: str | bool | None) -> bool:
    """What `resume_from_checkpoint` says: a folder or `true`, and not nothing or `false`."""
    return str(wanted or "").lower() not in ("", "false", "none")


def model_arguments(options: Any) -> dict[str, Any]:
    """How the model that `options` names is loaded: keyword arguments of `load_model`."""
    return {
        "revision": options.revision,
        "dtype": options.dtype,
        "device_map": options.device_map or ("cpu" if options.use_cpu else None),
        "load_in_4bit": options.load_in_4bit,
        "adapter": getattr(options, "adapter", None),
    }


def policy_arguments(options: Any, *, trains_every_weight: bool) -> dict[str, Any]:
    """`model_arguments` of a model that is trained: in float32 by default where every weight is, since most steps of a small learning
    rate are lost in bfloat16's rounding."""
    found = model_arguments(options)
    return found | {"dtype": found["dtype"] or "float32"} if trains_every_weight else found


class RunOptions:
    """A mixin for a config: one of our options dataclasses on one of `TrainingArguments`' kind.

    `own`: the options dataclass; `own_may_change`: what may be another when a run is resumed, beside what may in every run.
    """

    own: ClassVar[type]
    own_may_change: ClassVar[frozenset[str]] = frozenset()

    def options(self) -> dict[str, Any]:
        """Our own options as they run, as plain values."""
        values = {each.name: getattr(self, each.name) for each in fields(self.own)}
        return {name: getattr(value, "value", value) for name, value in values.items()}

    def settings_of_a_run(self) -> dict[str, Any]:
        """Our options that must stay as they are when a run is resumed; JSON-ready."""
        return {name: value for name, value in self.options().items() if name not in _MAY_CHANGE | self.own_may_change}

    def check_values(self, at_least: Mapping[str, float]) -> None:
        """Raises where one of our options is none of the words that it may be, or a number below its least (None is no number)."""
        for name, hint in get_type_hints(self.own).items():
            allowed = get_args(hint) if get_origin(hint) is Literal else None
            value = getattr(self, name)
            if allowed is not None and value not in allowed:
                raise FrugalignError(f"{name} is {value!r}; it must be one of {', '.join(map(str, allowed))}.")
        for name, least in at_least.items():
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value >= least):
                raise FrugalignError(f"{name} is {value}; it must be at least {least:g}.")

    def resolved(self) -> dict[str, Any]:
        """Every option as it runs, ready for `--config`: our own, and the inherited ones that are not at their defaults."""
        options = {name: value for name, value in self.options().items() if name not in _OF_ONE_START}
        every: Any = self
        for each in fields(every):
            default = each.default_factory() if each.default_factory is not MISSING else each.default
            value = getattr(self, each.name, default)
            if each.init and each.name not in {*options, *_OF_ONE_START, *_DERIVED} and value != default:
                options[each.name] = getattr(value, "value", value)
        return options


def refused_settings(error: Exception) -> FrugalignError:
    """What transformers or TRL says against the settings, as our one sentence."""
    return FrugalignError(f"These settings do not fit: {' '.join(str(error).split()).rstrip('.')}.")
