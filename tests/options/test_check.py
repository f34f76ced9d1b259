"""One rule per kind of value: numbers at the edges, what is no number, lists, words, and what `TrainingArguments` declares."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest

from frugalign.base.errors import FrugalignError
from frugalign.options import kinds
from frugalign.options.check import INHERITED, check_options, check_value
from frugalign.options.declare import option

NAN, INF = math.nan, math.inf


@pytest.mark.parametrize(
    ("kind", "right", "wrong"),
    [
        (kinds.FINITE, [-2.5, 0, 1e30], [NAN, INF, -INF]),
        (kinds.POSITIVE, [1e-9, 3], [0, -1, NAN, INF]),
        (kinds.NON_NEGATIVE, [0, 0.5], [-1e-9, NAN, INF]),
        (kinds.NON_POSITIVE, [0, -3.5], [1e-9, NAN, -INF]),
        (kinds.SHARE, [0, 0.5, 1], [-0.1, 1.1, NAN]),
        (kinds.PROBABILITY, [1e-9, 1], [0, 1.1, NAN]),
        (kinds.BELOW_ONE, [0, 0.999], [1, -0.1, NAN]),
        (kinds.PART, [0.1, 0.9], [0, 1, NAN]),
        (kinds.COUNT, [1, 7, 2.0], [0, -5, 1.5, NAN, INF]),
        (kinds.COUNT_OR_ZERO, [0, 3], [-1, 0.5, INF]),
        (kinds.WHOLE, [-3, 0], [0.5, NAN]),
        (kinds.SEED, [0, 2**32 - 1], [-1, 2**32, 0.5, NAN]),
        (kinds.MAX_STEPS, [-1, 1, 960], [0, -2, 1.5, INF]),
        (kinds.STEPS_OR_FRACTION, [0.25, 1, 10.0], [0, 1.5, -1, NAN, INF]),
    ],
)
def test_every_number_at_the_edges(kind: kinds.Kind, right: list[float], wrong: list[float]) -> None:
    for value in right:
        check_value("x", value, kind)
    for value in wrong:
        with pytest.raises(FrugalignError, match=r"^x is \S+; it must be .+[^.]\.$"):
            check_value("x", value, kind)
    for value in (True, "3", [None], {}):
        with pytest.raises(FrugalignError, match=r"it must be a (whole )?number"):
            check_value("x", value, kind)


def test_a_path() -> None:
    for value in ("runs/a", Path("runs")):
        check_value("x", value, kinds.PATH)
    for value in ("", "  ", 3, True):
        with pytest.raises(FrugalignError, match="it must be a path"):
            check_value("x", value, kinds.PATH)


@dataclass
class Options:
    rate: float = option(1.0, "…", kinds.POSITIVE)
    cap: int | None = option(None, "…", kinds.COUNT)
    weights: list[float] | None = option(None, "…", kinds.FINITE)
    plain: float = option(0.0, "…")
    whole: int | None = option(None, "…")
    either: str | int = option("auto", "…")
    style: Literal["short", "long"] | None = option(None, "…")
    weight_decay: float = field(default=0.0)
    warmup: float = field(default=0.0)
    derived: float = field(default=0.0, init=False)


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"rate": 0}, "rate is 0; it must be above 0."),
        ({"rate": None}, "rate is None; it must be a number."),
        ({"rate": "fast"}, "rate is 'fast'; it must be a number."),
        ({"cap": 0}, "cap is 0; it must be at least 1."),
        ({"cap": 2.5}, "cap is 2.5; it must be a whole number."),
        ({"weights": [1.0, NAN]}, "weights holds nan; it must be a finite number."),
        ({"plain": INF}, "plain is inf; it must be a finite number."),
        ({"whole": 1.5}, "whole is 1.5; it must be a whole number."),
        ({"style": "tall"}, "style is 'tall'; it must be one of short, long."),
        # Inherited fields have no metadata of ours: a table names their kinds, and any other float must be finite.
        ({"weight_decay": -1.0}, "weight_decay is -1.0; it must be at least 0."),
        ({"warmup": NAN}, "warmup is nan; it must be a finite number."),
    ],
)
def test_the_first_value_that_breaks_its_rule_is_named(values: dict[str, Any], sentence: str) -> None:
    with pytest.raises(FrugalignError) as raised:
        check_options(Options(**values))
    assert str(raised.value) == sentence


def test_what_obeys_passes() -> None:
    check_options(Options())
    check_options(Options(cap=1, weights=[-1.0, 0.0], whole=-2, either=3, style="long", plain=-5))


def test_the_table_names_fields_that_training_arguments_has() -> None:
    from transformers import TrainingArguments

    assert set(INHERITED) <= set(TrainingArguments.__dataclass_fields__)


@pytest.mark.parametrize(
    ("verb", "flags", "sentence"),
    [
        ("proxy", "--temperature nan", "temperature is nan; it must be above 0."),
        ("proxy", "--target_kl inf", "target_kl is inf; it must be above 0."),
        ("proxy", "--beta inf", "beta is inf; it must be at least 0."),
        ("proxy", "--reward_weights 1 nan", "reward_weights holds nan; it must be a finite number."),
        ("proxy", "--max_steps 0", "max_steps is 0; it must be at least 1, or -1 for whole epochs."),
        ("proxy", "--weight_decay -1", "weight_decay is -1.0; it must be at least 0."),
        ("proxy", "--adam_beta2 1", "adam_beta2 is 1.0; it must be at least 0 and below 1."),
        ("proxy", "--max_grad_norm nan", "max_grad_norm is nan; it must be at least 0."),
        ("psle", "--max_new_tokens -5", "max_new_tokens is -5; it must be at least 1."),
        ("psle", "--lora_alpha 0", "lora_alpha is 0; it must be at least 1."),
        ("psle", "--tau inf", "tau is inf; it must be at least 0."),
        ("psle", "--beta 0", "beta is 0.0; it must be above 0."),
        ("rerank", "--beta 0", "beta is 0.0; it must be above 0."),
        ("rerank", "--lora_r 0", "lora_r is 0; it must be at least 1."),
        ("rerank", "--label_noise 0.5", "label_noise is 0.5; it must be above 0 and below 0.5."),
        ("rerank", "--sample 1", "sample is 1; it must be at least 2, or 0 for none."),
        ("rerank", "--missing_eos_penalty 1", "missing_eos_penalty is 1.0; it must be at most 0."),
        ("reward", "--test_fraction 1", "test_fraction is 1.0; it must be above 0 and below 1."),
        ("reward", "--weight_decay 0.1 -1", "weight_decay holds -1.0; it must be at least 0."),
        ("study", "--jobs 0", "jobs is 0; it must be at least 1."),
        ("demo", "--max_steps 0", "max_steps is 0; it must be at least 1, or -1 for whole epochs."),
        ("evaluate", "--temperature nan", "temperature is nan; it must be above 0."),
        ("generate", "--max_new_tokens -5", "max_new_tokens is -5; it must be at least 1."),
        ("chat", "--temperature inf", "temperature is inf; it must be above 0."),
        ("validate", "--max_problems -1", "max_problems is -1; it must be at least 0."),
    ],
)
def test_every_verb_refuses_such_a_value_in_one_sentence(
    verb: str, flags: str, sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    from frugalign.cli.main import main

    needed = {
        "evaluate": "--model_name_or_path m --dataset_name d --reward r",
        "generate": "--model_name_or_path m --prompt p",
        "chat": "--model_name_or_path m",
        "validate": "d",
    }
    assert main([verb, *needed.get(verb, "").split(), *flags.split()]) == 2
    assert capsys.readouterr().err == f"frugalign: {sentence}\n"
