"""Validation: `check_options` checks an options dataclass against the kinds that its fields declare. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import Field, dataclass, fields
from functools import cache
from typing import Any, get_type_hints

from frugalign.base.errors import FrugalignError
from frugalign.options.hints import choices, list_item, members, scalar
from frugalign.options.kinds import (
    BELOW_ONE,
    COUNT,
    COUNT_OR_ZERO,
    FINITE,
    MAX_STEPS,
    NON_NEGATIVE,
    POSITIVE,
    SEED,
    SHARE,
    STEPS_OR_FRACTION,
    WHOLE,
    Kind,
)

INHERITED: Mapping[str, Kind] = {
    "adam_beta1": BELOW_ONE,
    "adam_beta2": BELOW_ONE,
    "adam_epsilon": POSITIVE,
    "data_seed": SEED,
    "dataloader_num_workers": COUNT_OR_ZERO,
    "dataloader_prefetch_factor": COUNT,
    "eval_accumulation_steps": COUNT,
    "eval_delay": NON_NEGATIVE,
    "eval_steps": STEPS_OR_FRACTION,
    "gradient_accumulation_steps": COUNT,
    "label_smoothing_factor": SHARE,
    "learning_rate": NON_NEGATIVE,
    "logging_steps": STEPS_OR_FRACTION,
    "max_grad_norm": NON_NEGATIVE,
    "max_steps": MAX_STEPS,
    "neftune_noise_alpha": NON_NEGATIVE,
    "num_train_epochs": POSITIVE,
    "per_device_eval_batch_size": COUNT,
    "per_device_train_batch_size": COUNT,
    "save_steps": STEPS_OR_FRACTION,
    "save_total_limit": COUNT,
    "seed": SEED,
    "torch_empty_cache_steps": COUNT,
    "warmup_steps": NON_NEGATIVE,
    "weight_decay": NON_NEGATIVE,
}
"""Kinds of the options that our configs inherit from `TrainingArguments`."""


@dataclass(frozen=True)
class _Rule:
    kind: Kind | None
    allowed: tuple[Any, ...] | None
    optional: bool


def check_options(options: Any) -> None:
    """Check every field of an options dataclass against its kind, and a Literal against its values.

    A float without a kind must be finite. An int that `option` declared must be whole.

    Raises:
        FrugalignError: a value breaks its rule; the message says what it must be.
    """
    cls: Any = type(options)
    for name, rule in _rules(cls).items():
        value = getattr(options, name)
        if value is not None or not rule.optional:
            check_value(name, value, rule.kind, rule.allowed)


def check_value(name: str, value: Any, kind: Kind | None, allowed: tuple[Any, ...] | None = None) -> None:
    """Check one value, or every item of a list, against a kind or the allowed words.

    Raises:
        FrugalignError: the value breaks its rule.
    """
    for item in value if isinstance(value, (list, tuple)) else [value]:
        refusal = None
        if allowed is not None:
            refusal = None if item in allowed else f"one of {', '.join(map(str, allowed))}"
        elif kind is not None:
            refusal = kind.refusal(item)
        if refusal is not None:
            shown = repr(item) if isinstance(item, str) else str(item)
            verb = "holds" if isinstance(value, (list, tuple)) else "is"
            raise FrugalignError(f"{name} {verb} {shown}; it must be {refusal}.")


@cache
def _rules(cls: type) -> dict[str, _Rule]:
    """The rules of a dataclass by field name. A field with metadata was declared by `option`. The others are
    inherited from `TrainingArguments` and its subclasses, which check their own words and allow None in any field."""
    hints, found = get_type_hints(cls), {}
    for each in fields(cls):
        hint, ours = hints[each.name], "kind" in each.metadata
        kind = _kind(each, hint) if ours else INHERITED.get(each.name, _finite(hint))
        allowed = choices(hint) if ours else None
        if each.init and (kind, allowed) != (None, None):
            found[each.name] = _Rule(kind, allowed, not ours or type(None) in members(hint))
    return found


def _kind(item: Field[Any], hint: Any) -> Kind | None:
    declared: Kind | None = item.metadata["kind"]
    return declared or (WHOLE if _number(hint) is int else _finite(hint))


def _finite(hint: Any) -> Kind | None:
    return FINITE if _number(hint) is float else None


def _number(hint: Any) -> Any:
    """The type of a hint's values, or of its items. None if it also accepts text such as `auto`."""
    return None if str in members(hint) else list_item(hint) or scalar(hint)
