"""How every page writes numbers, intervals, prompts and rewards."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from frugalign.base.parsing import dump_yaml
from frugalign.evaluation.schema import is_few


def written(value: float, form: str) -> str:
    """A number in a format such as `.2f`. The minus sign is a true one, and zero has none."""
    said = format(value, form)
    return said.removeprefix("-") if float(said.replace(",", "")) == 0 else true_minus(said)


def true_minus(text: str) -> str:
    """A text with true minus signs before its numbers."""
    return re.sub(r"(?<!\w)-(?=\d)", "−", text)


def number(value: float) -> str:
    """A number with two decimals, or none from 100 on."""
    return written(value, ",.0f" if abs(value) >= 100 else ".2f")


def signed(value: float) -> str:
    """`number` with its sign, also where it is +."""
    return ("+" if value >= 0 else "−") + number(abs(value))


def interval(estimate: Mapping[str, Any] | None, *, with_sign: bool = False) -> str:
    """`0.25 [0.15, 0.35]`; a dash where there is no estimate."""
    if estimate is None:
        return "—"
    write = signed if with_sign else number
    return f"{write(estimate['mean'])} [{write(estimate['ci_low'])}, {write(estimate['ci_high'])}]"


def precise_interval(estimate: Mapping[str, Any] | None, num_samples: int = 1) -> str:
    """The same with as many decimals as the interval's width needs, at least two. It has its n if that is small."""
    if not estimate:
        return "—"
    mean, low, high = (float(estimate[key]) for key in ("mean", "ci_low", "ci_high"))
    width = high - low
    decimals = min(6, max(2, -math.floor(math.log10(width)))) if width > 0 else 2
    said, lowest, highest = (written(each, f".{decimals}f") for each in (mean, low, high))
    few = f", n = {estimate['n']}" if is_few(estimate, num_samples) else ""
    return f"{said} [{lowest}, {highest}]{few}"


def prompt_in_words(prompt: Any) -> str:
    """A string as it is; a conversation as one line per message."""
    if isinstance(prompt, str):
        return prompt
    return "\n".join(f"{message['role']}: {message['content']}" for message in prompt)


def scores_in_words(rewards: Mapping[str, float | None]) -> str:
    """Rewards by name, with a dash for one that does not apply."""
    return ", ".join(f"{name} {'—' if value is None else written(value, '.3g')}" for name, value in rewards.items())


def setting_in_words(value: Any) -> str:
    """A setting or an option in YAML; a list of plain values on one line."""
    if value is None:
        return "—"
    if isinstance(value, list) and not any(isinstance(each, (list, dict)) for each in value):
        return ", ".join(setting_in_words(each) for each in value)
    return dump_yaml(value, allow_unicode=True, width=100).removesuffix("...\n").strip()
