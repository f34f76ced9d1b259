"""How every page writes numbers, intervals, prompts and rewards."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any


def number(value: float) -> str:
    """A number with two decimals, or none from 100 on. The minus sign is a true one, and zero has none."""
    said = f"{value:,.0f}" if abs(value) >= 100 else f"{value:.2f}"
    return said.removeprefix("-") if float(said.replace(",", "")) == 0 else said.replace("-", "−")


def signed(value: float) -> str:
    """`number` with its sign, also where it is +."""
    return ("+" if value >= 0 else "−") + number(abs(value))


def interval(estimate: Mapping[str, Any] | None, *, with_sign: bool = False) -> str:
    """`0.25 [0.15, 0.35]`; a dash where there is no estimate."""
    if estimate is None:
        return "—"
    write = signed if with_sign else number
    return f"{write(estimate['mean'])} [{write(estimate['ci_low'])}, {write(estimate['ci_high'])}]"


def precise_interval(estimate: Mapping[str, Any] | None) -> str:
    """The same with as many decimals as the interval's width needs, at least two."""
    if not estimate:
        return "—"
    mean, low, high = (float(estimate[key]) for key in ("mean", "ci_low", "ci_high"))
    width = high - low
    decimals = min(6, max(2, 1 - math.floor(math.log10(width)))) if width > 0 else 2
    return f"{mean:.{decimals}f} [{low:.{decimals}f}, {high:.{decimals}f}]"


def prompt_in_words(prompt: Any) -> str:
    """A string as it is; a conversation as one line per message."""
    if isinstance(prompt, str):
        return prompt
    return "\n".join(f"{message['role']}: {message['content']}" for message in prompt)


def scores_in_words(rewards: Mapping[str, float | None]) -> str:
    """Rewards by name, with a dash for one that does not apply."""
    return ", ".join(
        f"{name} {'—' if value is None else format(value, '.3g').replace('-', '−')}" for name, value in rewards.items()
    )
