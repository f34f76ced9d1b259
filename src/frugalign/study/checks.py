"""Checks before a study's first cell: a typo is reported once, not as one failure per cell."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from frugalign.base.errors import FrugalignError
from frugalign.base.specs import load_attribute
from frugalign.base.wording import did_you_mean
from frugalign.data import load_splits
from frugalign.engines.loading import check_model
from frugalign.methods import registry
from frugalign.options.check import check_setting, check_value
from frugalign.options.kinds import FINITE
from frugalign.options.method_line import LineOptions
from frugalign.policies.principles import load_principles
from frugalign.rewards import load_rewards
from frugalign.study.options import StudyOptions
from frugalign.study.plan import IN_CONTEXT, Line, cell_of, swept
from frugalign.study.task import prompt_splits


def check_study(options: StudyOptions, lines: Sequence[Line]) -> None:
    """Check that options, prompts, base, rewards, judges, preferences and principles exist and can be read.

    Raises:
        FrugalignError: the first one that cannot.
    """
    check_lines(lines, options.budget)
    if options.trainings_dir is not None and not Path(options.trainings_dir).is_dir():
        raise FrugalignError(f"trainings_dir names {options.trainings_dir}, which is not a folder.")
    check_model(str(options.model_name_or_path))
    prompt_splits(cell_of(lines[0], options.seeds[0], "test", options).request)
    measures = list(dict.fromkeys([*options.judges, *options.reward]))
    # A line's rewards are loaded one by one: one may also be a judge, and two of one name are allowed there.
    for rewards in (measures, *([each] for each in _rewards_of_lines(lines))):
        load_rewards(rewards)
    if options.representation_reward is not None:
        load_rewards(options.representation_reward)
    if options.model_judge is not None:
        check_model(options.model_judge)
    if options.preferences is not None:
        load_splits(options.preferences, kind="preference")
    if options.principles is not None and any(
        "principles" in registry.get(line.method).study_options for line in lines
    ):
        load_principles(options.principles)
    for name in {each.setting[IN_CONTEXT] for line in lines for each in swept(line) if IN_CONTEXT in each.setting}:
        load_principles(name)


def _check_values(line: Line, name: str, value: Any) -> None:
    """Check a value, or every value of a sweep, by the rule of the option."""
    config = registry.get(line.method).config
    owners = [*([] if config is None else [load_attribute(config)]), LineOptions]
    owner = next((each for each in owners if name in each.__dataclass_fields__), None)
    for each in value if isinstance(value, list) else [value]:
        named = f"In the study's line {line.label!r}, {name}"
        if owner is not None:
            check_setting(owner, name, each, named)
        elif isinstance(each, float):
            check_value(named, each, FINITE)


def _rewards_of_lines(lines: Sequence[Line]) -> list[str]:
    """The rewards that the lines' own options name, each once."""
    every = [each for line in lines for each in swept(line)]
    named = [each.setting.get(name) for each in every for name in registry.get(each.method).reward_options]
    return list(dict.fromkeys(name for name in named if name is not None))


_STUDY_OPTIONS = {
    *("model_name_or_path", "dataset_name", "reward", "reward_weights", "principles", "output_dir"),
    *("overwrite_output_dir", "resume_from_checkpoint", "seed", "use_cpu", "max_new_tokens", "max_completion_length"),
    *("prompt_format", "chat_template_kwargs", "method", "loss_type", "eval_reward", "eval_prompts"),
    *("report_to", "push_to_hub", "hub_model_id", "hub_private_repo", "reward_dataset_name"),
}
"""Options that the study sets for every line."""
_BUDGET_OPTIONS = {"max_steps", "prompts_per_round"}


def check_lines(lines: Sequence[Line], budget: dict[str, Any] | None = None) -> None:
    """Check that a line sets only options of its method, and none that the study or the budget sets.

    Raises:
        FrugalignError: the first one that does not belong, with the closest known name.
    """
    for line in lines:
        method = registry.get(line.method)
        known = registry.option_names(method) | {IN_CONTEXT}
        for name, value in line.setting.items():
            said = f"The study's line {line.label!r} gives {line.method} the option {name!r}, which"
            if name not in known:
                raise FrugalignError(f"{said} it does not have{did_you_mean(name, known - _STUDY_OPTIONS) or '.'}")
            if name in _STUDY_OPTIONS:
                raise FrugalignError(f"{said} the study sets for every line.")
            observed = registry.observed_by(name)
            if observed and name not in method.observers:
                raise FrugalignError(f"{said} a study offers for {' and '.join(observed)} only.")
            if budget and name in _BUDGET_OPTIONS:
                raise FrugalignError(f"{said} follows from the budget.")
            _check_values(line, name, value)
        for each in swept(line):
            if (problem := method.problem(each.setting)) is not None:
                raise FrugalignError(f"The study's line {line.label!r} {problem}.")
