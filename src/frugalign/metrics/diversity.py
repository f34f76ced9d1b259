"""How much generations repeat themselves."""

from __future__ import annotations

from collections.abc import Sequence


def distinct_n(sequence: Sequence[int], n: int = 2) -> float | None:
    """Share of a token sequence's n-grams that are distinct (Li et al. 2016, within one sequence); None below n tokens.

    Counted per sequence, so that it does not fall merely because more sequences were sampled.
    """
    total = len(sequence) - n + 1
    if total < 1:
        return None
    return len({tuple(sequence[start : start + n]) for start in range(total)}) / total
