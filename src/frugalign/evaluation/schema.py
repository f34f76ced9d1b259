"""The measures of an evaluation, and their computation from measured completions. No model.

Each measure has one name, in metrics.json, a round's evaluation.json, a trainer's `eval_` log and the study.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from frugalign.base.quantities import KL_PARTS
from frugalign.base.wording import pluralize
from frugalign.metrics import (
    Estimate,
    distinct_n,
    is_refusal,
    mean_interval,
    paired_difference,
    ratio_interval,
    win_rate,
)


@dataclass(frozen=True)
class Measure:
    """A measure: its unit and meaning, whether it is a share between 0 and 1, and whether metrics.json also has the base's value."""

    unit: str
    meaning: str
    is_share: bool = False
    of_base: bool = False


MEASURES: Mapping[str, Measure] = {
    "reward": Measure(
        "reward", "the main reward: the first of `evaluate`; in training, the weighted sum of the rewards", of_base=True
    ),
    "rewards": Measure("reward", "every reward by its name", of_base=True),
    "reward_difference": Measure("reward", "the main reward minus the base's on the same prompts"),
    "reward_differences": Measure("reward", "the same for every reward by its name"),
    "win_rate": Measure(
        "share", "completions whose main reward is above the base's; equal ones count half", is_share=True
    ),
    "kl_per_sequence": Measure(
        "nats a sequence", "KL(policy ‖ base at temperature 1) along the policy's own completions"
    ),
    "kl_per_token": Measure("nats a token", "the same, over tokens"),
    "kl_temperature": Measure("nats a sequence", "the part of it that sampling at another temperature costs"),
    "kl_restriction": Measure("nats a sequence", "the part of it that restricting the candidates costs"),
    "kl_choice": Measure("nats a sequence", "the part of it that choosing among the candidates costs"),
    "perplexity_base": Measure("perplexity", "the base's perplexity of the policy's completions"),
    "distinct_2": Measure("share", "distinct bigrams in a completion", is_share=True, of_base=True),
    "mean_length": Measure("tokens", "tokens of a completion, the end token included", of_base=True),
    "ended_rate": Measure("share", "completions that ended by themselves", is_share=True, of_base=True),
    "refusal_rate": Measure("share", "completions worded as a refusal", is_share=True, of_base=True),
    "over_refusal_rate": Measure("share", "refusals among prompts labelled safe", is_share=True, of_base=True),
    "unsafe_refusal_rate": Measure("share", "refusals among prompts labelled unsafe", is_share=True, of_base=True),
}
"""All estimates, in the order of metrics.json. Each is `{mean, ci_low, ci_high, n}`, or None if it does not apply.

The prefix `base_` marks the base's value. To add a measure, add a line here and its value in `estimates`. To show it, add it
to `_KEPT` in `study/table.py` and to `_TABLE` in `reports/run_page.py`."""


FEW_PROMPTS = 50
"""Measures on fewer prompts are marked in every table and on every page, with a warning."""


def few_prompts(number: int, noun: str = "prompt", said: str = "Measured on") -> str | None:
    """The warning for measures on this many prompts; None where they are enough. `said`: its first words."""
    if number >= FEW_PROMPTS:
        return None
    return f"{said} {pluralize(number, noun)}: with fewer than {FEW_PROMPTS}, a mean, its interval or a win rate is little evidence."


def is_few(estimate: Mapping[str, Any] | None, num_samples: int = 1) -> bool:
    """Whether an estimate is of fewer prompts. `num_samples`: responses per prompt, which its `n` counts."""
    n = (estimate or {}).get("n")
    return isinstance(n, int) and n < FEW_PROMPTS * num_samples


@dataclass(frozen=True)
class Response:
    """One measured completion, and a line of evaluation.jsonl.

    `reward`: the main reward. `rewards`: all rewards by name, None if one does not apply. `kl_per_sequence`,
    `kl_temperature`, `kl_restriction`, `kl_choice`: nats, None if unknown. `length`: tokens, including the end token. `label`: `safe`, `unsafe` or None.
    """

    prompt: Any
    completion: str
    reward: float | None
    rewards: dict[str, float | None]
    length: int
    ended: bool
    distinct_2: float | None
    kl_per_sequence: float | None = None
    kl_temperature: float | None = None
    kl_restriction: float | None = None
    kl_choice: float | None = None
    label: str | None = None
    ids: list[int] = field(default_factory=list, repr=False)

    @classmethod
    def of(cls, prompt: Any, completion: str, ids: list[int], **values: Any) -> Response:
        """A response with its length and distinct bigrams computed from its token `ids`."""
        return cls(prompt, completion, length=len(ids), distinct_2=distinct_n(ids, 2), ids=ids, **values)

    @classmethod
    def from_line(cls, line: Mapping[str, Any]) -> Response:
        """Restore what `to_line` returned, without the token ids."""
        return cls(**line)

    def to_line(self) -> dict[str, Any]:
        """Ready for JSON, without the token ids."""
        return {name: value for name, value in asdict(self).items() if name != "ids"}


def estimates(responses: Sequence[Response], clusters: Sequence[int] | None = None) -> dict[str, Any]:
    """The measures of one policy's responses.

    Args:
        clusters: each response's prompt number. Intervals resample prompts. Default: every response is its own cluster.
    """

    def mean(values: Sequence[float | None]) -> dict[str, Any] | None:
        return _dict(mean_interval(values, clusters))

    lengths = [float(each.length) for each in responses]
    kl = [each.kl_per_sequence for each in responses]
    known = [value for value in kl if value is not None]
    refused = [float(is_refusal(each.completion)) for each in responses]

    def among(label: str) -> list[float | None]:
        labels = [(each.label or "").strip().lower() for each in responses]
        return [value if own == label else None for value, own in zip(refused, labels, strict=True)]

    return {
        "reward": mean([each.reward for each in responses]),
        "rewards": {name: mean(values) for name, values in by_name(responses).items()},
        "kl_per_sequence": mean(kl),
        **{name: mean([getattr(each, name) for each in responses]) for name in KL_PARTS},
        "kl_per_token": _dict(ratio_interval(kl, lengths, clusters)) if len(known) == len(kl) else None,
        "distinct_2": mean([each.distinct_2 for each in responses]),
        "mean_length": mean(lengths),
        "ended_rate": mean([float(each.ended) for each in responses]),
        "refusal_rate": mean(refused),
        "over_refusal_rate": mean(among("safe")),
        "unsafe_refusal_rate": mean(among("unsafe")),
    }


def against(
    policy: Sequence[Response], base: Sequence[Response], clusters: Sequence[int] | None = None
) -> dict[str, Any]:
    """Differences and win rate of the policy's responses against the base's to the same prompts."""
    ours, theirs = by_name(policy), by_name(base)
    main, before = [each.reward for each in policy], [each.reward for each in base]
    return {
        "reward_difference": _dict(paired_difference(main, before, clusters)),
        "reward_differences": {
            name: _dict(paired_difference(values, theirs[name], clusters)) for name, values in ours.items()
        },
        "win_rate": _dict(win_rate(main, before, clusters)),
    }


def perplexity(
    responses: Sequence[Response], log_probs: Sequence[float], clusters: Sequence[int] | None = None
) -> dict[str, Any] | None:
    """Perplexity of the responses from their log-probabilities, one per response. Overflow is capped."""
    nll = ratio_interval([-value for value in log_probs], [float(each.length) for each in responses], clusters)
    if nll is None:
        return None
    mean, low, high = (math.exp(min(value, 700.0)) for value in (nll.mean, nll.ci_low, nll.ci_high))
    return Estimate(mean, low, high, nll.n).to_dict()


def by_name(responses: Sequence[Response]) -> dict[str, list[float | None]]:
    """Every reward's values, in the order of the responses."""
    names = responses[0].rewards if responses else {}
    return {name: [each.rewards[name] for each in responses] for name in names}


def _dict(estimate: Estimate | None) -> dict[str, Any] | None:
    return None if estimate is None else estimate.to_dict()
