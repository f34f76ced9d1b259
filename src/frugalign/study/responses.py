"""A cell's responses, beside those that they are compared with: of the same seed the base's line, or another one that the study names."""

from __future__ import annotations

from frugalign.methods import registry
from frugalign.runs.layout import Sample, read_samples
from frugalign.study.layout import evaluation_folder
from frugalign.study.runner import Finished, Outcome


def is_reference(outcome: Outcome, found: Finished) -> bool:
    """Whether this is a cell of the line that the others are compared with."""
    reference, line = found.options.reference, outcome.cell.line
    return registry.get(line.method).role == "base" if reference is None else line.label == reference


def reference_of(outcome: Outcome, found: Finished) -> str:
    """What a cell is compared with, by the folder that holds it; the cell's own base where there is no such folder."""
    other = _beside(outcome, found)
    return "its base" if other is None else other.folder.name


def _beside(outcome: Outcome, found: Finished) -> Outcome | None:
    """The finished cell of the reference with the same seed."""
    same = (each for each in found.outcomes if each.result is not None and each.cell.seed == outcome.cell.seed)
    return next((each for each in same if is_reference(each, found)), None)


def responses_of(outcome: Outcome) -> list[Sample]:
    """Every response of the cell's test, beside the base's."""
    return read_samples(evaluation_folder(outcome.folder))


def compared(outcome: Outcome, found: Finished) -> list[Sample]:
    """The cell's responses with `base` and `base_rewards` of what they are compared with; none where that is the cell itself or not there."""
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
