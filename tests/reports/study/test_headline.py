"""The sentences at the top of a study's page, from summaries with worked values."""

from typing import Any

from frugalign.reports.study.headline import headline


def line_of(label: str, mean: float, p_holm: float | None, tokens: float, **given: Any) -> dict[str, Any]:
    """A line of a summary, with an interval of ± 0.1."""
    around = {"mean": mean, "ci_low": mean - 0.1, "ci_high": mean + 0.1, "n": 8}
    kl = {"mean": 1.0, "ci_low": 0.5, "ci_high": 1.5, "n": 8}
    main = {"value": around, "difference": around, "p_value": p_holm, "p_holm": p_holm}
    return {
        "label": label,
        "method": "dpo",
        "setting": {},
        "measures": {"gold": main},
        "others": {"kl_per_sequence": kl},
        "costs": {"lm_forward_tokens": tokens},
    } | given


def test_the_headline_goes_by_the_corrected_p() -> None:
    """An interval without zero is no gain where its p, corrected, is above 0.05; a control is not the cheapest; a line that stood still is named."""
    lines = [
        line_of("control", 0.5, 0.01, 5.0, method="proxy", setting={"candidate_features": "token_bias"}),
        line_of("cheap", 0.2, 0.2, 10.0),
        line_of("dear", 0.4, 0.01, 100.0),
        line_of("worse", -0.4, 0.01, 1.0),
        line_of("still", 0.0, 1.0, 50.0, others={"kl_per_sequence": {"mean": 0.001}}),
    ]
    summary = {"judge": "gold", "lines": lines, "options": {"eval_do_sample": False}}
    best, cheapest, below, level, still, greedy = headline(summary)
    assert best.startswith("By gold, control is highest") and "is dear: +0.40 for 100 tokens" in cheapest
    assert below == "Below the base: worse."
    assert level == "Not significantly different from the base after the correction: cheap; still."
    assert still == "Hardly changed by training: still." and "decoded greedily" in greedy


def refusing(mean: float) -> dict[str, Any]:
    """What a line has beside its measures: how often it refuses what is safe, with an interval of ± 0.05."""
    return {"kl_per_sequence": None, "over_refusal_rate": {"mean": mean, "ci_low": mean - 0.05, "ci_high": mean + 0.05}}


def test_who_refuses_what_is_safe_is_named() -> None:
    """The best by a safety judge may be what refuses everything."""
    lines = [
        line_of("base", 0.0, None, 0.0, method="base", others=refusing(0.10)),
        line_of("careful", 0.5, 0.01, 10.0, others=refusing(0.15)),
        line_of("afraid", 0.8, 0.01, 10.0, others=refusing(0.75)),
        line_of("mute", 0.9, 0.01, 10.0, others=refusing(0.98)),
    ]
    summary: dict[str, Any] = {"judge": "gold", "lines": lines, "options": {}}
    said = "Refuse more of the prompts that are labelled safe: mute 98 %, afraid 75 %; the base refuses 10 %."
    assert said in headline(summary)
    compared = {"reference": "afraid"}
    said = "Refuse more of the prompts that are labelled safe: mute 98 %; afraid refuses 75 %."
    assert said in headline(summary | {"options": compared})
    unlabelled = [line | {"others": {"kl_per_sequence": None}} for line in lines]
    assert not any("labelled safe" in sentence for sentence in headline(summary | {"lines": unlabelled}))


def test_lines_that_do_not_differ_have_no_best() -> None:
    summary = {
        "judge": "gold",
        "lines": [line_of("dpo", 0.0, None, 1.0), line_of("sft", 0.0, None, 1.0)],
        "options": {},
    }
    assert headline(summary)[0] == "By gold, no line differs from the base."
