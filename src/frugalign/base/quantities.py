"""Counts and times in messages, in short, and the parts of a KL."""

from __future__ import annotations

KL_PARTS = ("kl_temperature", "kl_restriction", "kl_choice")
"""The parts that add up to the KL to the base at temperature 1, as emissions, generations and measures name them."""


def in_short(number: float) -> str:
    """A count with at least two digits: `950`, `12 k`, `3.9 M`, `2.1 G`."""
    for unit, name in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if number >= 0.9995 * unit:
            found = number / unit
            return f"{found:.1f}{name}" if found < 9.95 else f"{found:,.0f}{name}"
    return f"{number:.0f}"


def duration(seconds: float) -> str:
    """A time in its two largest units: `0.4 s`, `12 s`, `1 min 20 s`, `2 h 5 min`, `3 days 4 h`."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    for size, name, smaller, small_name in ((86_400, "days", 3_600, "h"), (3_600, "h", 60, "min"), (60, "min", 1, "s")):
        if whole >= size:
            large, rest = divmod(whole, size)
            name = "day" if name == "days" and large == 1 else name
            return f"{large:,} {name}" + (f" {rest // smaller} {small_name}" if rest // smaller else "")
    return f"{whole} s"
