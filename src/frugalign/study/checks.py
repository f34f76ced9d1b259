"""What a study names is looked up once, before its first cell: a slip of the pen is one sentence, not one failure for each cell."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from frugalign.base.errors import FrugalignError
from frugalign.data import load_splits
from frugalign.engines.loading import check_model
from frugalign.policies.principles import load_principles
from frugalign.rewards import load_rewards
from frugalign.study.budgeted import check_options
from frugalign.study.options import StudyOptions
from frugalign.study.plan import NEED_PRINCIPLES, Line, cell_of, swept
from frugalign.study.task import prompt_splits


def check_study(options: StudyOptions, lines: Sequence[Line]) -> None:
    """Options, prompts, base, rewards, judges, preferences and principles are there and can be read.

    Raises:
        FrugalignError: the first one that is not.
    """
    check_options(lines, options.budget)
    if options.trainings_dir is not None and not Path(options.trainings_dir).is_dir():
        raise FrugalignError(f"trainings_dir names {options.trainings_dir}, which is no folder.")
    check_model(str(options.model_name_or_path))
    prompt_splits(cell_of(lines[0], options.seeds[0], "test", options).asks)
    measures = list(dict.fromkeys([*options.judges, *options.reward]))
    settings = [each.setting for line in lines for each in swept(line)]
    watching = dict.fromkeys(setting["shift_reward"] for setting in settings if "shift_reward" in setting)
    # Each by itself: what is watched may be a judge too, and two of one name are no mistake there.
    for rewards in (measures, *([each] for each in watching)):
        load_rewards(rewards)
    if options.representation_reward is not None:
        load_rewards(options.representation_reward)
    if options.model_judge is not None:
        check_model(options.model_judge)
    if options.preferences is not None:
        load_splits(options.preferences, kind="preference")
    if options.principles is not None and any(line.method in NEED_PRINCIPLES for line in lines):
        load_principles(options.principles)
