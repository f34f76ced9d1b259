"""Which signal a proxy is trained by: what a command is given, and what its data holds. No torch."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Literal

from frugalign.base.errors import FrugalignError
from frugalign.data.load_files import columns_of

Signal = Literal["pairs", "demonstrations", "teacher"]
"""What stored data teaches a proxy."""


def signal_in(columns: Collection[str], *, has_teacher: bool, has_reward: bool = False) -> Signal | None:
    """What data with these columns teaches; None if it only says what a reward is to judge.

    Preference pairs teach with a reward too, which is then the confidence in their labels.
    """
    if has_teacher:
        return "teacher"
    if "chosen" in columns:
        return "pairs"
    return "demonstrations" if "completion" in columns and not has_reward else None


def signal_of(columns: Collection[str], *, has_teacher: bool, name: str = "This data set") -> Signal:
    """What stored data with these columns teaches without a reward.

    Raises:
        FrugalignError: nothing; or it labels single answers as good or bad.
    """
    found = signal_in(columns, has_teacher=has_teacher)
    if found is None:
        raise FrugalignError(
            f"{name} holds prompts alone, which teach nothing by themselves: give reward, principles or teacher, or preference pairs or "
            "demonstrations."
        )
    if found == "demonstrations" and "label" in columns:
        raise FrugalignError(
            f"{name} labels single answers as good or bad. A proxy learns from pairs or from good answers alone: keep those, or fit a reward "
            "on it (`frugalign reward`) and train the proxy by that."
        )
    return found


def is_stored(given: Mapping[str, Any]) -> bool:
    """Whether a proxy is to be trained on stored data: preference pairs, demonstrations or a teacher.

    Args:
        given: the options that a command was given, by name.

    Raises:
        FrugalignError: the data cannot be read, and no reward says what it is for.
    """
    has_teacher, has_reward = bool(given.get("principles") or given.get("teacher")), bool(given.get("reward"))
    columns: Collection[str] = ()
    if given.get("dataset_name") and not has_teacher:
        try:
            columns = columns_of(str(given["dataset_name"]))
        except FrugalignError:
            if not has_reward:
                raise
            # Reported where it is read.
    return signal_in(columns, has_teacher=has_teacher, has_reward=has_reward) is not None
