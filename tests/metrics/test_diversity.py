"""Distinct n-grams, counted by hand."""

from frugalign.metrics import distinct_n


def test_worked_numbers() -> None:
    """a b a b: bigrams ab, ba, ab: two of three distinct."""
    assert distinct_n([1, 2, 1, 2]) == 2 / 3
    assert distinct_n([7, 7, 7, 7], n=1) == 1 / 4
    assert distinct_n([1, 2, 3]) == 1.0
    assert distinct_n([1]) is None
