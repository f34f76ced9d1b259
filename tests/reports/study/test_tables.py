"""The three tables of a study's page, from one summary with worked values."""

from typing import Any

from frugalign.reports.study.tables import cost_note, cost_table, quality_table, wins_table


def estimate(mean: float) -> dict[str, Any]:
    return {"mean": mean, "ci_low": mean - 0.1, "ci_high": mean + 0.1, "n": 8}


def line_of(label: str, **given: Any) -> dict[str, Any]:
    return {
        "label": label,
        "method": label,
        "setting": {},
        "measures": {"gold": {"value": estimate(0.5), "difference": None, "p_value": None, "p_holm": None}},
        "win_rate": None,
        "length_controlled": None,
        "preferred": {},
        "others": {"kl_per_sequence": None, "mean_length": estimate(20.0), "refusal_rate": estimate(0.25)},
        "costs": {
            "generated_tokens": 1234.0,
            "lm_forward_tokens": 5678.0,
            "reward_calls": 9.0,
            "optimizer_steps": 4.0,
            "wall_clock_seconds": 2.4,
            "peak_memory_mb": 1000.0,
        },
        "decoding": {"lm_forward_tokens": 30.0, "reward_calls": 4.0, "seconds": 0.05},
        "trainable_parameters": None,
        "trainable_share": None,
    } | given


SUMMARY: dict[str, Any] = {
    "judge": "gold",
    "options": {},
    "lines": [
        line_of("base"),
        line_of(
            "proxy",
            setting={"eval_steps": 5},
            measures={
                "gold": {"value": estimate(-0.5), "difference": estimate(-1.0), "p_value": 0.01, "p_holm": 0.02},
                "over_refusal": {"value": estimate(0.0), "difference": None, "p_value": None, "p_holm": None},
            },
            win_rate=estimate(0.75),
            preferred={"llm": {"share": estimate(0.6), "contradictions": 0.125, "unanswered": 1200}},
            trainable_parameters=9569,
            trainable_share=0.0087,
        ),
    ],
}


def test_quality() -> None:
    head, rows = quality_table(SUMMARY)
    assert head == ["method", "gold", "over refusal", "difference to the base", "p (Holm)"]
    assert rows == [
        ["base", "0.50 [0.40, 0.60]", "—", "—", "—"],
        ["proxy", "−0.50 [−0.60, −0.40]", "0.00 [−0.10, 0.10]", "−1.00 [−1.10, −0.90]", "0.02"],
    ]


def test_wins_and_distance() -> None:
    head, rows = wins_table(SUMMARY)
    assert head[3] == "preferred by llm" and len(head) == len(rows[0]) == len(rows[1]) == 8
    assert rows[0][1:5] == ["—"] * 4 and rows[0][-1] == "0.25 [0.15, 0.35]"
    assert rows[1][1:5] == ["0.75 [0.65, 0.85]", "—", "0.60 [0.50, 0.70]", "12 %, 1,200"]


def test_costs() -> None:
    """20 tokens in 0.05 s are 400 tokens a second; a line that was evaluated during its training carries a dagger."""
    head, rows = cost_table(SUMMARY)
    assert len(head) == len(rows[0])
    assert rows[0] == ["base", "1,234", "5,678", "9", "4", "2", "1,000", "0", "—", "30", "4", "50", "400"]
    assert rows[1][0] == "proxy †" and rows[1][7:9] == ["9,569", "0.87 %"]
    assert cost_note(SUMMARY).startswith("†")
    assert cost_note(SUMMARY | {"lines": SUMMARY["lines"][:1]}) == ""
