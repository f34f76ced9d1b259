"""Validation: `check_options` checks an options dataclass against the kinds that its fields declare. No torch."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import Field, dataclass, fields
from functools import cache
from numbers import Integral, Real
from typing import Any, get_origin, get_type_hints

from frugalign.base.errors import FrugalignError
from frugalign.base.wording import shown
from frugalign.options.hints import choices, describe, fits, list_item, members
from frugalign.options.kinds import (
    BELOW_ONE,
    COUNT,
    COUNT_OR_ZERO,
    FINITE,
    LEARNING_RATE,
    MAX_STEPS,
    NAME,
    NAME_OR_EMPTY,
    NON_NEGATIVE,
    POSITIVE,
    PROBABILITY,
    SEED,
    SHARE,
    STEPS_OR_FRACTION,
    TEMPERATURE,
    WARM_UP,
    WHOLE,
    WORKERS,
    Kind,
    TextKind,
)

INHERITED: Mapping[str, Kind] = {
    "adam_beta1": BELOW_ONE,
    "adam_beta2": BELOW_ONE,
    "adam_epsilon": POSITIVE,
    "data_seed": SEED,
    "dataloader_num_workers": WORKERS,
    "dataloader_prefetch_factor": COUNT,
    "ddp_bucket_cap_mb": COUNT,
    "ddp_timeout": COUNT,
    "eval_accumulation_steps": COUNT,
    "eval_delay": NON_NEGATIVE,
    "eval_steps": STEPS_OR_FRACTION,
    "gradient_accumulation_steps": COUNT,
    "label_smoothing_factor": SHARE,
    "learning_rate": LEARNING_RATE,
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
    "warmup_steps": WARM_UP,
    "weight_decay": NON_NEGATIVE,
}
"""Kinds of the options that our configs inherit from `TrainingArguments`."""
_OF_PEERS: Mapping[str, Kind] = {
    **dict.fromkeys(("beta", "delta", "entropy_coef", "epsilon", "epsilon_high"), NON_NEGATIVE),
    **dict.fromkeys(("desirable_weight", "undesirable_weight"), NON_NEGATIVE),
    **dict.fromkeys(("generation_batch_size", "max_completion_length", "max_length", "num_generations"), COUNT),
    **dict.fromkeys(("num_iterations", "pad_to_multiple_of", "ref_model_sync_steps", "steps_per_generation"), COUNT),
    **dict.fromkeys(("dataset_num_proc", "precompute_ref_batch_size", "num_generations_eval"), COUNT),
    **dict.fromkeys(("label_smoothing", "ld_alpha", "min_p", "ref_model_mixup_alpha", "top_entropy_quantile"), SHARE),
    "repetition_penalty": POSITIVE,
    "temperature": TEMPERATURE,
    "top_k": COUNT_OR_ZERO,
    "top_p": PROBABILITY,
}
"""Kinds of the options of TRL's configs."""


_WORDS: Mapping[str, tuple[Any, ...]] = {
    "dataloader_multiprocessing_context": ("fork", "spawn", "forkserver"),
    "include_num_input_tokens_seen": ("no", "all", "non_padding", True, False),
    "log_level": ("detail", "debug", "info", "warning", "error", "critical", "passive"),
    "log_level_replica": ("detail", "debug", "info", "warning", "error", "critical", "passive"),
    "train_sampling_strategy": ("random", "sequential", "group_by_length"),
}
"""The words of inherited options that nothing else checks before a model is loaded."""
_BUILTIN = (bool, int, float, str, list, tuple, dict)


@dataclass(frozen=True)
class _Rule:
    """`ours`: declared by `option`. Objects of other libraries may be values of inherited fields, which check them."""

    kind: Kind | None
    hint: Any
    ours: bool
    allowed: tuple[Any, ...] | None


def check_options(options: Any) -> None:
    """Check every field of an options dataclass: its type, its kind, and a Literal against its words.

    Paths become text and numbers of other libraries plain numbers, so that a config can be written down.

    Raises:
        FrugalignError: a value breaks its rule; the message says what it must be.
    """
    cls: Any = type(options)
    for name, rule in _rules(cls).items():
        value = getattr(options, name)
        plain = _plain(value)
        if plain is not value:
            setattr(options, name, plain)
        _check(name, plain, rule)


def check_setting(cls: type, name: str, value: Any, named: str = "") -> None:
    """Check one value as `check_options` does for the field `name` of `cls`, if there is one.

    Args:
        named: what to call the value in the message. Default: its name.

    Raises:
        FrugalignError: the value breaks its rule.
    """
    rule = _rules(cls).get(name)
    if rule is not None:
        _check(named or name, value, rule)


def check_value(name: str, value: Any, kind: Kind | None, allowed: tuple[Any, ...] | None = None) -> None:
    """Check one value, or every item of a list, against a kind or the allowed words.

    Raises:
        FrugalignError: the value breaks its rule.
    """
    for item in value if isinstance(value, (list, tuple)) else [value]:
        refusal = None
        if allowed is not None:
            words = [each for each in allowed if each == item and type(each) is type(item)]
            refusal = None if words else f"one of {', '.join(map(str, allowed))}"
        elif kind is not None:
            refusal = kind.refusal(item)
        if refusal is not None:
            verb = "holds" if isinstance(value, (list, tuple)) else "is"
            raise FrugalignError(f"{name} {verb} {shown(item)}; it must be {refusal}.")


def _check(name: str, value: Any, rule: _Rule) -> None:
    # None stands for an empty list of names: the verb says that one is missing.
    if value is None and (fits(None, rule.hint) or list_item(rule.hint) is str):
        return
    if not rule.ours and not isinstance(value, (*_BUILTIN, type(None))):
        return
    if rule.allowed is not None:
        # A list is not a word, even if it holds one.
        check_value(name, [value] if isinstance(value, (list, tuple)) else value, None, rule.allowed)
        return
    # A kind says more than a type, where all values have one type. Else it has a say on the values of its own type only.
    if rule.kind is not None and len(_types(rule.hint)) == 1:
        check_value(name, value, rule.kind)
    elif rule.kind is not None:
        ours = str if isinstance(rule.kind, TextKind) else (int, float)
        for item in value if isinstance(value, (list, tuple)) else [value]:
            if isinstance(item, ours) and not isinstance(item, bool):
                check_value(name, item, rule.kind)
    if rule.ours and isinstance(value, (list, tuple)) and not value and str not in _types(rule.hint):
        raise FrugalignError(f"{name} is empty; it must hold at least one number.")
    if not fits(value, rule.hint):
        raise FrugalignError(f"{name} is {shown(value)}; it must be {describe(rule.hint)}.")


def _types(hint: Any) -> set[Any]:
    """The types of a hint's values and of its items, without None."""
    kinds = {list_item(member) or get_origin(member) or member for member in members(hint)}
    return kinds - {type(None)}


@cache
def _rules(cls: type) -> dict[str, _Rule]:
    """The rules of a dataclass by field name. A field with metadata was declared by `option`. The others are
    inherited from `TrainingArguments` and its subclasses, which allow None in any field."""
    hints, found = get_type_hints(cls), {}
    for each in fields(cls):
        if not each.init:
            continue
        hint, ours = hints[each.name], "kind" in each.metadata
        allowed = choices(hint) if ours else _WORDS.get(each.name)
        if ours:
            kind = each.metadata["kind"] or _default_kind(hint, NAME)
        else:
            kind = INHERITED.get(each.name) or _OF_PEERS.get(each.name) or _default_kind(hint, NAME_OR_EMPTY)
            hint = _inherited_hint(each, hint)
            kind = None if str not in _types(hint) and isinstance(kind, TextKind) else kind
        found[each.name] = _Rule(kind, hint, ours, allowed)
    return found


def _inherited_hint(item: Field[Any], hint: Any) -> Any:
    """TRL and transformers leave None out of the types of fields whose default it is. Keyword arguments are a mapping:
    any other text fails only once they are used."""
    if item.name.endswith("_kwargs"):
        return dict[str, Any] | None
    return hint | None if item.default is None else hint


def _default_kind(hint: Any, of_text: Kind) -> Kind | None:
    types = _types(hint)
    for of, kind in ((str, of_text), (float, FINITE), (int, WHOLE)):
        if of in types:
            return kind
    return None


def _plain(value: Any) -> Any:
    if isinstance(value, os.PathLike):
        return str(value)
    if isinstance(value, list) and any(_plain(each) is not each for each in value):
        return [_plain(each) for each in value]
    if type(value) in (bool, int, float) or not isinstance(value, Real):
        return value
    return int(value) if isinstance(value, Integral) else float(value)
