"""One rule per kind of value: numbers at the edges, what is no number, lists, words, and what `TrainingArguments` declares."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
from tests.options.every_option import NEEDED, VERBS, command_of, config_of, fields_of, hints_of

from frugalign.base.errors import FrugalignError
from frugalign.options import hints, kinds
from frugalign.options.check import INHERITED, check_options, check_value
from frugalign.options.declare import option

NAN, INF = math.nan, math.inf


@pytest.mark.parametrize(
    ("kind", "right", "wrong"),
    [
        (kinds.FINITE, [-2.5, 0, 1e12], [NAN, INF, -INF, 1e13, -1e30]),
        (kinds.POSITIVE, [1e-9, 3], [0, -1, NAN, INF, 1e300]),
        (kinds.NON_NEGATIVE, [0, 0.5], [-1e-9, NAN, INF]),
        (kinds.NON_POSITIVE, [0, -3.5], [1e-9, NAN, -INF]),
        (kinds.SHARE, [0, 0.5, 1], [-0.1, 1.1, NAN]),
        (kinds.PROBABILITY, [1e-9, 1], [0, 1.1, NAN]),
        (kinds.BELOW_ONE, [0, 0.999], [1, -0.1, NAN]),
        (kinds.PART, [0.1, 0.9], [0, 1, NAN]),
        (kinds.COUNT, [1, 7, 2.0], [0, -5, 1.5, NAN, INF, 2**31]),
        (kinds.COUNT_OR_ZERO, [0, 3], [-1, 0.5, INF]),
        (kinds.WHOLE, [-3, 0], [0.5, NAN]),
        (kinds.SEED, [0, 2**32 - 1], [-1, 2**32, 0.5, NAN]),
        (kinds.MAX_STEPS, [-1, 1, 960], [0, -2, 1.5, INF]),
        (kinds.TEMPERATURE, [1e-4, 1, 50], [0, -1, 1e-5, 1e-300, NAN, INF]),
        (kinds.LEARNING_RATE, [0, 1e-5, 10], [-1e-5, 101, NAN, INF]),
        (kinds.SIZE, [1, 65536], [0, 65537, 1.5]),
        (kinds.WORKERS, [0, 8], [-1, 10_000]),
        (kinds.WARM_UP, [0, 0.1, 100], [-1, 1.5, NAN]),
        (kinds.STEPS_OR_FRACTION, [0.25, 1, 10.0], [0, 1.5, -1, NAN, INF]),
    ],
)
def test_every_number_at_the_edges(kind: kinds.Kind, right: list[float], wrong: list[float]) -> None:
    for value in right:
        check_value("x", value, kind)
    for value in wrong:
        with pytest.raises(FrugalignError, match=r"^x is \S+; it must be .+[^.]\.$"):
            check_value("x", value, kind)
    for value in (10**30, -(10**30), 10**400):
        with pytest.raises(FrugalignError, match=r"^x is .+; it must be .+\.$"):
            check_value("x", value, kind)
    for value in (True, "3", [None], {}):
        with pytest.raises(FrugalignError, match=r"it must be a (whole )?number"):
            check_value("x", value, kind)


def test_a_path() -> None:
    for value in ("runs/a", Path("runs")):
        check_value("x", value, kinds.PATH)
    for value in (
        "",
        "  ",
        3,
        True,
        "a\0b",
        "a\x1b[31m",
        "a\nb",
        "\ud800",
        "n" * 256,
        "日" * 100,
        "/".join("n" * 3000),
    ):
        with pytest.raises(FrugalignError, match="it must be a path") as raised:
            check_value("x", value, kinds.PATH)
        assert len(str(raised.value)) < 200 and str(raised.value).isprintable()
    check_value("x", "n" * 255 + "/é.jsonl", kinds.PATH)


def test_free_text() -> None:
    check_value("x", "any\ttext\nof ü\x1b" * 1000, kinds.TEXT)
    for value in ("a\0", "\udc80", 3, None):
        with pytest.raises(FrugalignError, match="it must be text"):
            check_value("x", value, kinds.TEXT)


def test_arguments_of_the_chat_template() -> None:
    """Any mapping that JSON can hold, without what every verb sets itself."""
    for value in ({}, {"enable_thinking": False}, {"documents": [{"title": "a"}]}):
        check_value("x", value, kinds.TEMPLATE_ARGUMENTS)
    for wrong, words in (
        ("thinking", "a mapping"),
        ({1: 2}, "a mapping"),
        ({"add_generation_prompt": True}, "a mapping without add_generation_prompt"),
        ({"tokenize": True}, "a mapping without tokenize"),
        ({"x": INF}, "a mapping that JSON can hold"),
        ({"x": object()}, "a mapping that JSON can hold"),
    ):
        with pytest.raises(FrugalignError, match=f"it must be {words}"):
            check_value("x", wrong, kinds.TEMPLATE_ARGUMENTS)


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


# -- every option ---------------------------------------------------------------------------------------------------------

_NO_NUMBERS: list[Any] = [NAN, INF, -INF, 10**30, -(10**30), 10**400, 1e300, True, "x", {}, [], [None], [NAN], [-INF]]
_NO_TEXTS: list[Any] = ["a\0b", "\ud800", 3, 2.5, True, {}]
_NO_NAMES: list[Any] = [*_NO_TEXTS, "  ", "a\x1b[31m", "n" * 5000, "/" * 5000]
_NO_CHOICES: list[Any] = ["none of them", 0, True, [], ["auto"], {}, NAN]


def wrong_values(name: str, hint: Any) -> list[Any]:
    """Values that no option of the type may have."""
    types = {hints.list_item(member) or member for member in hints.members(hint)} - {type(None)}
    if hints.choices(hint) is not None:
        return _NO_CHOICES if types != {bool} else []
    if types <= {int, float}:
        return [*_NO_NUMBERS, 3.5] if types == {int} else _NO_NUMBERS
    if types == {bool}:
        return [0, 1, "true", "x", 1.0, NAN, [], {}]
    if types == {str}:
        return _NO_TEXTS if name in ("prompt", "system", "system_instruction", "resume_from_checkpoint") else _NO_NAMES
    if types == {dict[str, Any]}:
        return [3, "x", True, [], NAN]
    return [NAN, INF]


OPTIONS = [(verb, each.name) for verb in VERBS for each in fields_of(verb)]


def test_there_are_rules_for_all_options() -> None:
    """The table below cannot be empty, and no option is left out of it by its type."""
    ours = {
        name
        for _, name in OPTIONS
        if any("kind" in each.metadata for v in VERBS for each in fields_of(v) if each.name == name)
    }
    assert len(ours) > 135 and len({name for _, name in OPTIONS}) > 230
    for verb, name in OPTIONS:
        assert wrong_values(name, hints_of(verb)[name]), name


@pytest.mark.parametrize(
    "verb",
    # A training's config sets up a device, a thousand times.
    [pytest.param(verb, marks=[pytest.mark.slow] * (command_of(verb).full is not None)) for verb in VERBS],
)
def test_no_option_of_any_verb_takes_an_absurd_value(verb: str) -> None:
    """In Python, as a dataclass: one sentence that names the option, and what it must be."""
    cls, silent = config_of(verb), []
    for each in fields_of(verb):
        for value in wrong_values(each.name, hints_of(verb)[each.name]):
            if value == each.default and type(value) is type(each.default):
                continue
            try:
                check_options(cls(**NEEDED.get(verb, {}) | {each.name: value}))
            except FrugalignError as error:
                said = str(error)
                assert (
                    len(said) < 500
                    and "\n" not in said
                    and (each.name in said or said.startswith(("These settings", "A data loader")))
                )
            else:
                silent.append((each.name, value))
    assert not silent


@pytest.mark.parametrize(
    ("verb", "values", "sentence"),
    [
        ("proxy", {"optim_args": "nonsense"}, "optim adamw_torch_fused cannot be used: "),
        ("proxy", {"optim": "adamw_bnb_8bit"}, "optim adamw_bnb_8bit cannot be used: "),
        ("rerank", {"lr_scheduler_kwargs": {"nonsense": 1}}, "lr_scheduler_type linear cannot be used: TypeError: "),
        ("rerank", {"dataloader_persistent_workers": True}, "A data loader with these settings cannot be used: persistent_workers"),
        ("rerank", {"fp16": True, "use_cpu": True}, "fp16 needs a GPU."),
        ("psle", {"use_liger_kernel": True}, "use_liger_kernel needs the package liger_kernel"),
        ("rerank", {"deepspeed": "nowhere.json"}, "deepspeed needs the package deepspeed"),
        ("rerank", {"accelerator_config": "nowhere.json"}, "These settings do not fit: FileNotFoundError: "),
        ("rerank", {"optim": "galore_adamw"}, "optim galore_adamw needs the package galore_torch, which is not installed."),
        ("psle", {"optim": "adalomo"}, "optim adalomo needs the package lomo_optim, which is not installed."),
        ("rerank", {"fsdp": "full_shard"}, "fsdp needs several processes"),
        ("rerank", {"torch_compile_backend": "zig"}, "torch_compile with these settings cannot be used: "),
        ("psle", {"lr_scheduler_type": "sideways"}, "These settings do not fit: sideways is not a valid SchedulerType"),
        ("proxy", {"push_to_hub": True}, "push_to_hub needs the hub, and HF_HUB_OFFLINE is set."),
    ],
)  # fmt: skip
def test_parts_of_a_training_are_tried_before_a_model_is_loaded(
    verb: str, values: dict[str, Any], sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(FrugalignError) as raised:
        config_of(verb)(**values)
    assert str(raised.value).startswith(sentence)


def test_values_of_other_libraries_become_plain() -> None:
    import numpy as np

    options = Options(rate=np.float32(0.5), cap=np.int64(3), weights=[np.float64(1.0)])  # type: ignore[arg-type, list-item]
    check_options(options)
    assert [type(each) for each in (options.rate, options.cap, (options.weights or [0])[0])] == [float, int, float]
