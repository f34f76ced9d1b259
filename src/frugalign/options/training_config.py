"""Shared by the methods' training configs: validation on top of `TrainingArguments`, and values that can be read
back. No torch."""

from __future__ import annotations

import os
from dataclasses import MISSING, fields
from typing import Any, ClassVar

from frugalign.base.errors import FrugalignError
from frugalign.options.check import check_options
from frugalign.options.launcher import several_on_cpu, shard_the_base
from frugalign.options.resuming import MAY_CHANGE, OF_TRAINING, START_OPTIONS
from frugalign.options.training_parts import check_packages, refused_settings, try_training_parts

_DERIVED = {
    *("accelerator_config", "activation_checkpointing", "dataloader_pin_memory", "debug", "disable_tqdm"),
    *("eval_strategy", "gradient_checkpointing", "remove_unused_columns", "local_rank", "run_name", "logging_dir"),
}
"""Fields that `TrainingArguments` and our configs set themselves."""
_SECRET = ("hub_token", "push_to_hub_token")
"""Fields that are never written to a file."""
_NOT_CARRIED_OVER: dict[str, tuple[Any, str]] = {
    "save_only_model": (False, "a killed run could not be resumed exactly"),
    "label_smoothing_factor": (0.0, "our loss does not use it"),
    "label_names": (None, "our data have their own columns"),
    "include_for_metrics": ([], "our measures have their own inputs"),
    "batch_eval_metrics": (False, "our measures have their own inputs"),
    "hub_strategy": ("every_save", "the finished artefact is uploaded, once"),
    "hub_always_push": (False, "the finished artefact is uploaded, once"),
}
"""`TrainingConfig.not_carried_over` for every method."""


class TrainingConfig:
    """A mixin for a config that combines one of our options dataclasses with `TrainingArguments` or a subclass.

    `own`: the options dataclass. `own_may_change`: its options that may change on resuming, in addition to
    `MAY_CHANGE`. `also_fixed`: inherited options that may not, in addition to `OF_TRAINING`. `not_carried_over`: inherited options that must keep a value, that value, and the reason or the alternative.
    """

    own: ClassVar[type]
    own_may_change: ClassVar[frozenset[str]] = frozenset()
    also_fixed: ClassVar[tuple[str, ...]] = ()
    not_carried_over: ClassVar[dict[str, tuple[Any, str]]] = {}

    def __post_init__(self) -> None:
        """Check every value, ours and inherited, then let transformers set up its own fields.

        The config is complete before any model is loaded, so whatever would fail later is tried here.

        Raises:
            FrugalignError: a value breaks its rule, or transformers rejects it.
        """
        import torch

        check_options(self)
        shard_the_base(self)
        # transformers would set up the process for some of them.
        for name, (neutral, reason) in (_NOT_CARRIED_OVER | self.not_carried_over).items():
            value = getattr(self, name, neutral)
            if getattr(value, "value", value) not in (neutral, [neutral], None):
                raise FrugalignError(f"{name} is not carried over: {reason}.")
        check_packages(self)
        self.prepare()
        arguments: Any = super()
        # Without an accelerator, torch would warn about pinned memory in every training.
        pinned = getattr(self, "dataloader_pin_memory", False) and not getattr(self, "use_cpu", False)
        self.dataloader_pin_memory = pinned and torch.cuda.is_available()
        if several_on_cpu():
            os.environ.setdefault("ACCELERATE_USE_CPU", "true")  # or each process would take itself for the only one
        try:
            arguments.__post_init__()
        except Exception as error:  # transformers and accelerate raise any kind for settings that do not fit
            raise refused_settings(error) from error
        self.check()
        try_training_parts(self)

    def __getstate__(self) -> dict[str, Any]:
        """What is pickled. Trainer pickles its arguments into files."""
        return {name: None if name in _SECRET else value for name, value in vars(self).items()}

    def prepare(self) -> None:
        """Set fields that transformers is to find. Every value has been checked by itself."""

    def check(self) -> None:
        """Check what values mean together.

        Raises:
            FrugalignError: values that contradict each other.
        """

    def options(self) -> dict[str, Any]:
        """Our own options with the values in use, as plain values."""
        values = {each.name: getattr(self, each.name) for each in fields(self.own)}
        return {name: getattr(value, "value", value) for name, value in values.items()}

    def fixed_settings(self) -> dict[str, Any]:
        """Our options, and those of transformers, that must not change when a run is resumed. JSON-ready."""
        of_training = {name: getattr(self, name) for name in (*OF_TRAINING, *self.also_fixed) if hasattr(self, name)}
        own = {name: value for name, value in self.options().items() if name not in MAY_CHANGE | self.own_may_change}
        return own | {name: getattr(value, "value", value) for name, value in of_training.items()}

    def resolved(self) -> dict[str, Any]:
        """Every option with the value in use, ready for `--config`: our own, and the inherited ones that differ from
        their defaults."""
        options = {name: value for name, value in self.options().items() if name not in START_OPTIONS}
        every: Any = self
        for each in fields(every):
            default = each.default_factory() if each.default_factory is not MISSING else each.default
            value = getattr(self, each.name, default)
            if each.init and each.name not in {*options, *START_OPTIONS, *_DERIVED, *_SECRET} and value != default:
                options[each.name] = getattr(value, "value", value)
        return options
