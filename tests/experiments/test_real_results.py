"""The tables and samples of the tasks on a real model, from rows of a study."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from experiments import real_results
from experiments.real_results import FED, SPENT, TASKS, Task, against_base, best_rival, samples, summarised, table

from frugalign.metrics import Estimate
from frugalign.study.plan import Line
from frugalign.study.table import Measured, Row

CHECKED, SAFETY = TASKS[0], TASKS[1]


def estimate(mean: float, half: float = 0.1) -> Estimate:
    return Estimate(mean, mean - half, mean + half, 40)


def row(label: str, method: str, mean: float, gap: float | None, judge: str = "reward") -> Row:
    result = {"costs": {"peak_memory_mb": 900.0}, "evaluation_costs": {"peak_memory_mb": 1100.0}}
    outcome: Any = SimpleNamespace(result=result, folder=Path(label))
    measured = Measured(estimate(mean), None if gap is None else estimate(gap), None, 0.5)
    harmful = Measured(estimate(0.25), None, None)
    return Row(
        line=Line(label, method, {}),
        judge=judge,
        prompts=40,
        outcomes=[outcome, outcome],
        measures={judge: measured, "sounds_harmful": harmful},
        win_rate=None,
        length_controlled=None,
        preferred={},
        others={
            "kl_per_sequence": None if gap is None else estimate(4.0),
            "ended_rate": estimate(0.5),
            "distinct_2": estimate(0.875),
            "perplexity_base": estimate(12.5),
        },
        costs={"lm_forward_tokens": 12_345.0, "generated_tokens": 8_000.0, "cpu_seconds": 130.0},
        decoding={"lm_forward_tokens": 125.0, "seconds": 0.5},
        trainable_parameters=1000,
        base_parameters=10**6,
    )


def test_a_table_shows_the_gain_over_the_base_and_what_it_cost() -> None:
    rows = {each.line.label: each for each in (row("base", "base", 0.2, None), row("proxy", "proxy", 0.3, 0.1))}
    numbers = {label: summarised(CHECKED, each) for label, each in rows.items()}
    marker, head, _, base, proxy = table(CHECKED, numbers).splitlines()
    assert marker == "<!-- numbers: real-instructions -->" and len(head.strip("|").split("|")) == 6
    assert base == "| base | 0.20 [0.10, 0.30] | 0.50 / 0.88 / 12.50 / 0.25 | — | 12 / 125 | 130 / 1,100 |"
    assert (
        proxy == "| proxy | 0.30, +0.10 [+0.00, +0.20] | 0.50 / 0.88 / 12.50 / 0.25 | 4.00 | 12 / 125 | 130 / 1,100 |"
    )
    kept = numbers["proxy"]
    assert kept[FED] == [12.345, 125.0] and kept[SPENT] == [130.0, 1100.0] and kept["seeds"] == 2
    assert set(head.strip("| ").split(" | ")[1:]) <= kept.keys()


def test_a_judge_that_scored_nothing_is_a_dash() -> None:
    found = summarised(SAFETY, row("base", "base", 0.2, None, judge="behaves"))
    assert found[SAFETY.titles[0]] is None and against_base(row("base", "base", 0.2, None), "harmful") is None
    assert "| — | — | — |" in table(SAFETY, {"base": found})


def test_the_best_rival_is_none_of_our_own_methods() -> None:
    rows = [
        row("proxy", "proxy", 0.9, 0.7),
        row("best-of-4", "best_of_n", 0.5, 0.3),
        row("dpo", "dpo", 0.4, 0.2),
        row("few-shot", "base", 0.8, 0.6),
    ]
    found = best_rival(CHECKED, rows)
    assert found is not None and found.line.label == "best-of-4" and best_rival(CHECKED, rows[:1]) is None


def test_samples_are_the_same_prompts_for_every_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """Evenly spread, with nothing that Markdown would read as its own."""

    def responses(outcome: Any) -> list[dict[str, Any]]:
        return [{"prompt": f"p{n}", "policy": f"# {outcome.folder} {n}\n\n1 < *2*"} for n in range(8)]

    monkeypatch.setattr(real_results, "responses_of", responses)
    rows = [row("base", "base", 0.2, None), row("proxy", "proxy", 0.3, 0.1), row("dpo", "dpo", 0.4, 0.2)]
    found = samples(Task("a", "reward", (), ("", "")), rows)
    assert [line for line in found if line.startswith("**")] == ["**p0**", "**p2**", "**p4**", "**p6**"]
    assert found[:7] == ["## A", "", "**p0**", "", "base:", "", "> \\# base 0"]
    assert found[7:10] == [">", "> 1 \\< \\*2\\*", ""] and found.count("dpo:") == 4 == found.count("proxy:")


def test_the_figure_has_a_panel_for_each_task(tmp_path: Path) -> None:
    rows = [row("base", "base", 0.2, None), row("proxy", "proxy", 0.3, 0.1), row("dpo", "dpo", 0.4, 0.2)]
    real_results.draw({CHECKED: rows, SAFETY: rows}, tmp_path / "img" / "tasks.png")
    assert (tmp_path / "img" / "tasks.png").stat().st_size > 5_000
