"""A cell's responses beside those of the reference with the same seed: the base, or another line that the study names."""

from __future__ import annotations

from frugalign.runs.layout import Sample, read_samples
from frugalign.study.layout import evaluation_folder
from frugalign.study.plan import is_base
from frugalign.study.runner import Outcome, StudyState


def is_reference(outcome: Outcome, found: StudyState) -> bool:
    """Whether this is a cell of the reference line."""
    reference, line = found.options.reference, outcome.cell.line
    return is_base(line.method, line.setting) if reference is None else line.label == reference


def reference_of(outcome: Outcome, found: StudyState) -> str:
    """The folder name of the reference's cell; "its base" where no such cell is finished."""
    other = _beside(outcome, found)
    return "its base" if other is None else other.folder.name


def _beside(outcome: Outcome, found: StudyState) -> Outcome | None:
    """The finished cell of the reference with the same seed."""
    same = (each for each in found.outcomes if each.result is not None and each.cell.seed == outcome.cell.seed)
    return next((each for each in same if is_reference(each, found)), None)


def responses_of(outcome: Outcome) -> list[Sample]:
    """Every response of the cell's test, beside the base's."""
    return read_samples(evaluation_folder(outcome.folder))


def beside_reference(outcome: Outcome, found: StudyState) -> list[Sample]:
    """The cell's responses, with the reference's as `base` and `base_rewards`. Empty for the reference itself, and while it is not finished."""
    if is_reference(outcome, found):
        return []
    own, other = responses_of(outcome), _beside(outcome, found)
    if other is None:
        # A study without a line for the base has the base's responses in every cell.
        return own if found.options.reference is None else []
    return [
        {**mine, "base": theirs["policy"], "base_rewards": theirs["rewards"]}
        for mine, theirs in zip(own, responses_of(other), strict=True)
    ]
