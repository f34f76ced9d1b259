"""Grammar for messages."""

from __future__ import annotations


def pluralize(number: int, noun: str, plural: str = "") -> str:
    """`1 round`, `2 rounds`, `1,000 rounds`; `plural`: an irregular plural."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"
