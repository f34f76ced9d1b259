"""The tables of a study's page: quality, wins and distance, cost. Each is a head and rows of cells, as text."""

from __future__ import annotations

from typing import Any

from frugalign.methods import registry
from frugalign.reports.in_words import interval
from frugalign.reports.study.summary import Summary, SummaryLine, main_measure, reference_in_words

Table = tuple[list[str], list[list[str]]]
_COSTS = (
    ("generated tokens", "generated_tokens"),
    ("LM tokens fed", "lm_forward_tokens"),
    ("reward calls", "reward_calls"),
    ("optimiser steps", "optimizer_steps"),
    ("seconds", "wall_clock_seconds"),
    ("peak memory, MB", "peak_memory_mb"),
)
_DECODING = (
    ("LM tokens", "lm_forward_tokens", 1),
    ("reward calls", "reward_calls", 1),
    ("ms", "seconds", 1000),
)
_OTHERS = (("KL, nats", "kl_per_sequence"), ("length", "mean_length"), ("refusals", "refusal_rate"))


def quality_table(summary: Summary) -> Table:
    """Quality: every measure, and the main judge's difference to the reference."""
    names = list(dict.fromkeys(name for line in summary["lines"] for name in line["measures"]))
    head = [
        "method",
        *(str(name).replace("_", " ") for name in names),
        f"difference to {reference_in_words(summary)}",
        "p (Holm)",
    ]
    rows = []
    for line in summary["lines"]:
        main = main_measure(summary, line)
        rows.append(
            [
                line["label"],
                *(interval(line["measures"][name]["value"]) if name in line["measures"] else "—" for name in names),
                interval(main.get("difference"), with_sign=True),
                "—" if main.get("p_holm") is None else f"{main['p_holm']:.2g}",
            ]
        )
    return head, rows


def wins_table(summary: Summary) -> Table:
    """Wins and distance: win rates, how far the model moved, and how its responses changed."""
    judges = list(dict.fromkeys(name for line in summary["lines"] for name in line["preferred"]))
    head = ["method", "win rate", "… at equal length"]
    head += [*(title for name in judges for title in (f"preferred by {name}", "… contradictions, no verdict"))]
    head += [title for title, _ in _OTHERS]
    rows = [
        [
            line["label"],
            interval(line["win_rate"]),
            interval(line["length_controlled"]),
            *(cell for name in judges for cell in _verdicts(line["preferred"].get(name))),
            *(interval(line["others"][name]) for _, name in _OTHERS),
        ]
        for line in summary["lines"]
    ]
    return head, rows


def cost_table(summary: Summary) -> Table:
    """Costs of training and of one response, medians over the seeds."""
    head = ["method", *(title for title, _ in _COSTS), "trainable parameters", "… of the base"]
    head += [f"per response: {title}" if not place else f"… {title}" for place, (title, _, _) in enumerate(_DECODING)]
    head.append("tokens per second")
    rows = []
    for line in summary["lines"]:
        share = line["trainable_share"]
        rows.append(
            [
                f"{line['label']} †" if _observers(line) else line["label"],
                *(f"{line['costs'][name]:,.0f}" for _, name in _COSTS),
                f"{line['trainable_parameters'] or 0:,}",
                "—" if share is None else f"{100 * share:.2f} %",
                *(f"{factor * line['decoding'].get(name, 0.0):,.0f}" for _, name, factor in _DECODING),
                _speed(line),
            ]
        )
    return head, rows


def _speed(line: SummaryLine) -> str:
    """Response tokens per second, in the test's batches. Responses that best-of-n discards do not count."""
    length, seconds = line["others"]["mean_length"], line["decoding"].get("seconds")
    return f"{length['mean'] / seconds:,.0f}" if length and seconds else "—"


def cost_note(summary: Summary) -> str:
    """What the daggers of the cost table mean; empty without daggers."""
    observers = sorted({name for line in summary["lines"] for name in _observers(line)})
    if not observers:
        return ""
    return f"† Includes the tokens, reward calls and seconds of observing the training ({', '.join(observers)}). A training without it costs less."


def _observers(line: SummaryLine) -> set[str]:
    """The options of a line that observe its training without changing it."""
    return set(registry.get(line["method"]).observers) & set(line["setting"])


def _verdicts(said: dict[str, Any] | None) -> tuple[str, str]:
    if said is None:
        return "—", "—"
    odds = "—" if said["contradictions"] is None else f"{100 * said['contradictions']:.0f} %"
    return interval(said["share"]), f"{odds}, {said['unanswered']:,}"
