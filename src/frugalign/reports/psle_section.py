"""The section "Rounds" of a run's page: figures, a table and captions about PSLE's rounds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from frugalign.base.wording import pluralize
from frugalign.evaluation.schema import FEW_PROMPTS, few_prompts
from frugalign.methods.psle.report_data import (
    Points,
    Rounds,
    branch_shares,
    displacement,
    displacement_verdict,
    gains,
    held_out_points,
    manifest_points,
    table,
)
from frugalign.reports import figures
from frugalign.reports.in_words import true_minus

Figure = tuple[str, str]
"""Alternative text and data URI."""

LEARNED_FROM = (
    "How each couple was used. PSLE ranks couples whose gain is above the threshold and imitates the others. For comparison: how much RAFT, "
    "which imitates only each prompt's best response, would use of the same responses."
)
"""Caption of `learned_from_figures`."""

_USES = (("this run", "use"), ("RAFT on the same responses", "use_of_raft"))
_SHARES = (
    ("tokens with a gradient, share", "tokens"),
    ("(Σw)²/(n·Σw²) of the responses", "responses"),
)
_DRIFT = (
    ("KL to the start, nats per sequence", (("", "kl_per_sequence"),)),
    ("tokens per completion", (("", "mean_length"),)),
    ("distinct bigrams, share", (("", "distinct_2"),)),
    (
        "refusals, share",
        (
            ("all prompts", "refusal_rate"),
            ("safe (over-refusals)", "over_refusal_rate"),
            ("unsafe", "unsafe_refusal_rate"),
        ),
    ),
)


@dataclass(frozen=True)
class RoundsSection:
    """`head`, `rows`: the table; `groups`: (heading, caption, figures), only those with figures."""

    number: int
    incomplete: list[str]
    head: list[str]
    rows: list[list[str]]
    groups: list[tuple[str, str, list[Figure]]]


def section(rounds: Rounds) -> RoundsSection:
    """The whole section except its samples."""
    head, rows = table(rounds)
    groups = [
        (
            "Held-out prompts",
            _held_out_caption(rounds),
            held_out_figures(rounds),
        ),
        (
            "What the rounds learn from",
            LEARNED_FROM,
            learned_from_figures(rounds),
        ),
        (
            "Rewards of the responses",
            "Sampled before each round's training. All rounds share one scale.",
            reward_figures(rounds),
        ),
        (
            "Distance from the start",
            "On the held-out prompts. Refusals are recognised by their wording.",
            drift_figures(rounds),
        ),
        (
            "Displacement",
            f"{true_minus(displacement_verdict(rounds))} Each point averages over different couples. A dotted line ends a round.".strip(),
            displacement_figures(rounds),
        ),
    ]
    rows = [[true_minus(cell) for cell in row] for row in rows]
    return RoundsSection(len(rounds.done), rounds.incomplete, head, rows, [group for group in groups if group[2]])


def _held_out_caption(rounds: Rounds) -> str:
    number = max((len(each.samples) for each in rounds.evaluations), default=FEW_PROMPTS)
    few = few_prompts(number) or f"{pluralize(number, 'prompt')}."
    return f"{few} They are answered without the principles and with the same noise at every evaluation. 0 rounds completed is the start. Bands are 95 % intervals."


def held_out_figures(rounds: Rounds) -> list[Figure]:
    """The training reward, each other reward in its own figure (their scales differ), and the win rate."""
    names: list[str] = []
    for evaluation in rounds.evaluations:
        names += [name for name in evaluation.measures.get("rewards", {}) if name not in names]
    trained_on = next((each.trained_on for each in rounds.done if each.trained_on), [])
    what = f"reward {trained_on[0]}, trained on" if len(trained_on) == 1 else "reward, trained on"
    lines: list[tuple[str, Points, float | None]] = [(what, held_out_points(rounds, "", "reward"), None)]
    for name in names:
        if trained_on == [name]:
            continue  # it is the first figure
        kind = "reward" if name in trained_on else "judge"
        lines.append((f"{kind} {name}", held_out_points(rounds, "", "rewards", name), None))
    lines.append(("win rate against the start", held_out_points(rounds, "", "win_rate"), 0.5))
    return _drawn([(ylabel, [line], level) for ylabel, line, level in lines], "rounds completed")


def learned_from_figures(rounds: Rounds) -> list[Figure]:
    """The threshold beside the mean gain, the shares of the branches, and the use of the responses beside RAFT's."""
    gain = [manifest_points(rounds, "threshold τ·σ₀", "threshold"), gains(rounds, "mean gain")]
    uses = [
        (ylabel, [manifest_points(rounds, label, use, key) for label, use in _USES], None) for ylabel, key in _SHARES
    ]
    found = _drawn([("reward", gain, None)], "round")
    shares = branch_shares(rounds)
    if shares:
        labels = [str(each.number) for each in rounds.done]
        found.append(
            (
                "share of couples in each branch over rounds",
                figures.stacked(shares, labels, "round", "share of couples"),
            )
        )
    return found + _drawn(uses, "round", bottom=0.0)


def reward_figures(rounds: Rounds) -> list[Figure]:
    """A histogram for every round: the first and the second half of each prompt's responses, on bins that all rounds share."""
    every = [reward for each in rounds.done for reward in (*each.plain, *each.guided)]
    found = []
    for each in rounds.done:
        if not each.plain:
            continue
        left_out = f", {pluralize(each.unscored, 'couple')} without a reward left out" if each.unscored else ""
        uri = figures.distributions(
            each.plain,
            each.guided,
            f"reward in round {each.number}",
            rounds.sides,
            "responses",
            (min(every), max(every)),
        )
        found.append((f"rewards of the responses of round {each.number}{left_out}", uri))
    return found


def drift_figures(rounds: Rounds) -> list[Figure]:
    """KL to the start, length, distinct bigrams and refusals."""
    lines = [(ylabel, [held_out_points(rounds, label, key) for label, key in keys], None) for ylabel, keys in _DRIFT]
    return _drawn(lines, "rounds completed")


def displacement_figures(rounds: Rounds) -> list[Figure]:
    """The log-likelihoods of both responses of ranked couples over the steps of all rounds."""
    series, borders = displacement(rounds)
    if not series:
        return []
    text = "log-likelihood of the responses of ranked couples over the steps of all rounds"
    return [(text, figures.segmented_curves(series, borders, "log-likelihood, nats per token"))]


def _drawn(
    lines: Sequence[tuple[str, Sequence[Points], float | None]], xlabel: str, bottom: float | None = None
) -> list[Figure]:
    """A figure for each (y label, lines, dashed level); none where no line has a point."""
    found = []
    for ylabel, points, level in lines:
        shown = [line for line in points if line[1]]
        if shown:
            uri = figures.with_intervals(shown, ylabel, xlabel, level=level, bottom=bottom)
            found.append((f"{ylabel}, over rounds", uri))
    return found
