"""Which signal a proxy is trained by: what a command is given, and what its data holds. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from frugalign.base.errors import FrugalignError
from frugalign.data.load_files import columns_of


def is_stored(given: Mapping[str, Any]) -> bool:
    """Whether a proxy is to be trained on stored data: preference pairs, demonstrations or a teacher.

    Pairs are, also with a reward, which is then the confidence in their labels. Prompts, and demonstrations with a reward, are not.

    Args:
        given: the options that a command was given, by name.

    Raises:
        FrugalignError: the data cannot be read, and no reward says what it is for.
    """
    if given.get("principles") or given.get("teacher"):
        return True
    if not given.get("dataset_name"):
        return False
    try:
        columns = columns_of(str(given["dataset_name"]))
    except FrugalignError:
        if given.get("reward"):  # reported where it is read
            return False
        raise
    return "chosen" in columns or ("completion" in columns and not given.get("reward"))
