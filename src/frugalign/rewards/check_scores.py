"""Warn about scores that teach or compare nothing: equal everywhere, equal for each prompt, mostly None, or read from cut answers.

Such a reward breaks no contract, so `score` accepts it. Trainers and `evaluate` call these checks on their first scores.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

from frugalign.data.encode import answer_text
from frugalign.rewards.classifier import ClassifierReward
from frugalign.rewards.loading import NamedReward
from frugalign.rewards.protocols import StateReward

_log = logging.getLogger(__name__)

FEWEST = 4
"""Different responses that a check needs. Fewer may well have equal rewards."""
MOST = 0.9
"""The share of responses or prompts from which on a check warns."""
MANY_CUT = 0.1
"""The share of cut responses from which on a representation reward judges too many beginnings."""


def warn_of_useless_rewards(
    rewards: Sequence[NamedReward],
    by_name: Mapping[str, Sequence[float | None]],
    completions: Sequence[Any],
) -> set[str]:
    """Warn once for every reward that is None for nearly all responses, or equal for all of them.

    Args:
        by_name: each reward's values, aligned with `completions`.
        completions: strings or message lists, as the rewards received them.

    Returns:
        The names of the rewards that were warned of.
    """
    found = set()
    for named in rewards:
        values = by_name[named.name]
        problem = _problem(named, values, completions)
        if problem:
            found.add(named.name)
            _log.warning("The reward %r %s", named.name, problem)
    return found


def _problem(named: NamedReward, values: Sequence[float | None], completions: Sequence[Any]) -> str | None:
    if len({answer_text(each) for each in completions}) < FEWEST:
        return None
    known = [value for value in values if value is not None]
    if len(values) - len(known) >= MOST * len(values):
        return (
            f"is None for {len(values) - len(known):,} of {len(values):,} responses: it applies to almost none of them."
        )
    if not _are_equal(known) or len(known) < FEWEST:
        return None
    said = f"gave all {len(known):,} responses the same value, {known[0]:.4g}, so it tells none of them apart"
    if all(isinstance(each, str) for each in completions) or isinstance(
        named.function, (StateReward, ClassifierReward)
    ):
        return f"{said}. Check that it reads the completion."
    return f"{said}. It received message lists: the text of a completion is completion[-1]['content']."


def warn_of_equal_groups(totals: Sequence[float | None], size: int) -> None:
    """Warn if the rewards are equal within nearly every group, so that a method that compares them learns little.

    Args:
        totals: rewards of consecutive groups of `size` responses to one prompt. None or NaN: no reward.
    """
    groups = [
        [value for value in totals[start : start + size] if value is not None and not math.isnan(value)]
        for start in range(0, len(totals), size)
    ]
    compared = [group for group in groups if len(group) > 1]
    equal = sum(map(_are_equal, compared))
    everything_is_equal = _are_equal([value for group in groups for value in group])
    if len(compared) < 2 or equal < MOST * len(compared) or everything_is_equal:
        return
    _log.warning(
        "The %d responses to a prompt have equal rewards for %d of %d prompts, so there is little to learn from them. Use a finer reward, "
        "more varied prompts or a higher temperature.",
        size,
        equal,
        len(compared),
    )


def warn_of_cut_responses(share: float, max_new_tokens: int | None, *, may_penalise: bool = False) -> None:
    """Warn if a representation reward reads many cut responses. Its probes were fitted on whole answers, and order answers
    that lack their last third clearly worse (`docs/methods/representation-reward.md#what-the-probes-read`).

    Args:
        share: the share of responses that reached `max_new_tokens` without an end token.
        may_penalise: whether the caller has the option `missing_eos_penalty`.
    """
    if share > MANY_CUT:
        _log.warning(
            "%.0f %% of the responses are cut at max_new_tokens (%s). A representation reward judges them by what comes before their "
            "last sentence end, and less reliably than whole ones: raise max_new_tokens%s.",
            100 * share,
            max_new_tokens,
            ", or set missing_eos_penalty (say -10)" if may_penalise else "",
        )


def reads_states(rewards: Sequence[NamedReward]) -> bool:
    """Whether one of the rewards is a representation reward."""
    return any(isinstance(named.function, StateReward) for named in rewards)


def _are_equal(values: Sequence[float]) -> bool:
    """Whether all values are equal up to rounding."""
    return not values or math.isclose(min(values), max(values), rel_tol=1e-9, abs_tol=1e-12)
