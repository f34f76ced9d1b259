"""The sentences at the top of a study's page: what its tables show."""

from __future__ import annotations

from collections.abc import Sequence

from frugalign.base.wording import pluralize
from frugalign.methods import registry
from frugalign.reports.in_words import number, signed
from frugalign.reports.study.summary import Summary, SummaryLine, main_measure, reference_in_words
from frugalign.study.plan import is_base

_LEVEL = 0.05
_UNMOVED = 0.005
"""A KL in nats per response below this counts as an unmoved model: the table shows 0.00."""


def headline(summary: Summary) -> list[str]:
    """The best line, the cheapest line with a gain, and the lines that do not differ from the reference."""
    compared = [line for line in summary["lines"] if main_measure(summary, line).get("difference") is not None]
    if not compared:
        return []
    trained = [line for line in compared if line["costs"]["lm_forward_tokens"] > 0]
    reference = reference_in_words(summary)
    below = [line["label"] for line in compared if _direction(summary, line) < 0]
    level = [line["label"] for line in compared if _direction(summary, line) == 0]
    still = [
        line["label"] for line in trained if (kl := line["others"]["kl_per_sequence"]) and abs(kl["mean"]) < _UNMOVED
    ]
    refusing = _refusing(summary)
    found = [
        _best(summary, compared),
        _cheapest(summary, trained),
        f"Below {reference}: {'; '.join(below)}." if below else "",
        f"Refuse more of the prompts that are labelled safe: {refusing}." if refusing else "",
        f"Not significantly different from {reference} after the correction: {'; '.join(level)}." if level else "",
        f"Hardly changed by training: {'; '.join(still)}." if still else "",
        "Responses are decoded greedily, except those of best-of-n, which are sampled."
        if not summary["options"].get("eval_do_sample", True)
        else "",
        *dict.fromkeys(registry.get(line["method"]).note or "" for line in compared),
    ]
    return [sentence for sentence in found if sentence]


def _best(summary: Summary, compared: Sequence[SummaryLine]) -> str:
    """The line with the highest mean, and its difference to the reference."""
    judge, reference = summary["judge"], reference_in_words(summary)
    if not any(main_measure(summary, line)["difference"]["mean"] for line in compared):
        return f"By {judge}, no line differs from {reference}."
    best = max(compared, key=lambda line: float(main_measure(summary, line)["value"]["mean"]))
    main = main_measure(summary, best)
    gap, corrected = main["difference"], main["p_holm"]
    among = "" if gap["mean"] > 0 else f" of the compared lines, but not above {reference}"
    said = (
        f"By {judge}, {best['label']} is highest{among}: {number(main['value']['mean'])}, {signed(gap['mean'])} "
        f"[{signed(gap['ci_low'])}, {signed(gap['ci_high'])}] to {reference}"
    )
    if corrected is None:
        return f"{said}."
    return f"{said}, p = {corrected:.2g} after Holm's correction over {pluralize(len(compared), 'line')}."


def _cheapest(summary: Summary, trained: Sequence[SummaryLine]) -> str:
    """The trained line with a gain for the fewest tokens; empty where no line gains."""
    gained = [line for line in trained if _direction(summary, line) > 0 and not _is_control(line)]
    if not gained:
        return ""
    cheap = min(gained, key=lambda line: float(line["costs"]["lm_forward_tokens"]))
    return (
        f"The cheapest trained line with a gain is {cheap['label']}: {signed(main_measure(summary, cheap)['difference']['mean'])} "
        f"for {cheap['costs']['lm_forward_tokens']:,.0f} tokens fed to the model."
    )


def _direction(summary: Summary, line: SummaryLine) -> int:
    """1 for a line significantly above the reference, -1 for one below, else 0. By Holm's p-value, or without one by the interval."""
    main = main_measure(summary, line)
    gap = main["difference"]
    sure = main["p_holm"] < _LEVEL if main["p_holm"] is not None else not gap["ci_low"] <= 0 <= gap["ci_high"]
    return (1 if gap["mean"] > 0 else -1) if sure else 0


def _refusing(summary: Summary) -> str:
    """The lines that refuse more of the safe prompts than the reference, with intervals apart. Empty without such lines or labels."""
    named = summary["options"].get("reference")
    rates = [(line, rate) for line in summary["lines"] if (rate := line["others"].get("over_refusal_rate"))]
    known = (
        rate for line, rate in rates if (line["label"] == named if named else is_base(line["method"], line["setting"]))
    )
    limit = next(known, None)
    if limit is None:
        return ""
    more = [(rate["mean"], line["label"]) for line, rate in rates if rate["ci_low"] > limit["ci_high"]]
    said = ", ".join(f"{label} {100 * mean:.0f} %" for mean, label in sorted(more, reverse=True))
    return f"{said}; {reference_in_words(summary)} refuses {100 * limit['mean']:.0f} %" if said else ""


def _is_control(line: SummaryLine) -> bool:
    """Whether a line is a control."""
    return registry.get(line["method"]).is_control(line["setting"])
