"""Shared by the methods' training configs: validation on top of `TrainingArguments`, and values that can be read
back. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import MISSING, fields
from typing import Any, ClassVar

from frugalign.base.errors import FrugalignError
from frugalign.options.check import check_options
from frugalign.options.resuming import MAY_CHANGE, START_OPTIONS

_DERIVED = {
    *("accelerator_config", "activation_checkpointing", "dataloader_pin_memory", "debug", "disable_tqdm"),
    *("eval_strategy", "gradient_checkpointing", "remove_unused_columns", "local_rank", "run_name", "logging_dir"),
}
"""Fields that `TrainingArguments` and our configs set themselves."""
_NEVER_LISTED = ("azure_ml", "flyte")
"""Trackers that transformers may leave out of its list of those installed."""


class TrainingConfig:
    """A mixin for a config that combines one of our options dataclasses with `TrainingArguments` or a subclass.

    `own`: the options dataclass. `own_may_change`: its options that may change on resuming, in addition to
    `MAY_CHANGE`.
    """

    own: ClassVar[type]
    own_may_change: ClassVar[frozenset[str]] = frozenset()

    def __post_init__(self) -> None:
        """Check every value, ours and inherited, then let transformers set up its own fields.

        Raises:
            FrugalignError: a value breaks its rule, or transformers rejects it.
        """
        check_options(self)
        arguments: Any = super()
        try:
            arguments.__post_init__()
        except ValueError as error:
            raise refused_settings(error) from error
        _check_trackers(getattr(self, "report_to", None) or ())

    def options(self) -> dict[str, Any]:
        """Our own options with the values in use, as plain values."""
        values = {each.name: getattr(self, each.name) for each in fields(self.own)}
        return {name: getattr(value, "value", value) for name, value in values.items()}

    def fixed_settings(self) -> dict[str, Any]:
        """Our options that must not change when a run is resumed. JSON-ready."""
        return {name: value for name, value in self.options().items() if name not in MAY_CHANGE | self.own_may_change}

    def resolved(self) -> dict[str, Any]:
        """Every option with the value in use, ready for `--config`: our own, and the inherited ones that differ from
        their defaults."""
        options = {name: value for name, value in self.options().items() if name not in START_OPTIONS}
        every: Any = self
        for each in fields(every):
            default = each.default_factory() if each.default_factory is not MISSING else each.default
            value = getattr(self, each.name, default)
            if each.init and each.name not in {*options, *START_OPTIONS, *_DERIVED} and value != default:
                options[each.name] = getattr(value, "value", value)
        return options


def _check_trackers(report_to: str | Sequence[str]) -> None:
    """Raises where a tracker is unknown or not installed, before any model is loaded."""
    names = [report_to] if isinstance(report_to, str) else report_to
    names = [name for name in names if name not in ("none", "all")]
    if not names:
        return
    from transformers.integrations import integration_utils as trackers

    known = list(trackers.INTEGRATION_TO_CALLBACK)
    installed = {*trackers.get_available_reporting_integrations(), *_NEVER_LISTED}
    for name in names:
        if name not in known:
            raise FrugalignError(
                f"report_to names {name!r}, which transformers does not know; it knows {', '.join(known)}."
            )
        if name not in installed:
            raise FrugalignError(f"report_to names {name}, which is not installed.")


def refused_settings(error: Exception) -> FrugalignError:
    """The error of transformers or TRL about the settings, as one user error."""
    return FrugalignError(f"These settings do not fit: {' '.join(str(error).split()).rstrip('.')}.")
