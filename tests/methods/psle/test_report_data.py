"""The section "Rounds" of a report: its numbers are those of the files, and what the files lack is named."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from frugalign.base.errors import FrugalignError
from frugalign.methods.psle.report_data import (
    Rounds,
    branch_shares,
    displacement,
    displacement_verdict,
    gains,
    held_out_points,
    manifest_points,
    read_rounds,
    side_by_side,
    table,
)
from frugalign.reports import figures
from frugalign.reports import psle_section as round_figures
from frugalign.reports.run_page import write_report

GUIDED, PLAIN = "log_likelihood/ranked_guided", "log_likelihood/ranked_plain"


def write_lines(path: Path, lines: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def estimate(mean: float) -> dict[str, Any]:
    return {"mean": mean, "ci_low": mean - 0.1, "ci_high": mean + 0.2, "n": 2}


def write_evaluation(folder: Path, reward: float, win_rate: float | None, words: str) -> None:
    """Two held-out prompts, one of them without a judgement."""
    folder.mkdir(parents=True, exist_ok=True)
    measures = {
        "reward": estimate(reward),
        "rewards": {"taught": estimate(reward), "gold": estimate(2 * reward), "manners": None},
        "kl_per_sequence": estimate(reward / 10),
        "mean_length": estimate(7.0),
        "distinct_2": estimate(0.5),
        "refusal_rate": estimate(0.25),
        "over_refusal_rate": None,
        "unsafe_refusal_rate": None,
        "win_rate": None if win_rate is None else estimate(win_rate),
    }
    (folder / "evaluation.json").write_text(json.dumps(measures))
    sample = {
        "completion": words,
        "reward": reward,
        "rewards": {"taught": reward, "gold": None},
        "kl_per_sequence": 0.0,
    }
    write_lines(folder / "evaluation.jsonl", [{"prompt": f"prompt {number}"} | sample for number in (1, 2)])


def write_round(folder: Path, number: int, *, steps: int, rewards: list[list[float | None]], **manifest: Any) -> None:
    """A finished round; `rewards`: a list per prompt, its plain responses first; two logged lines, at step 1 and at the last."""
    write_evaluation(folder, 1.0 + number, 0.6 + number / 10, f"words <b>after</b> round {number}")
    content = {
        "round": number,
        "principles": "fingerprint",
        "tau": 0.2 * 0.5**number,
        "threshold": 0.3 * 0.5**number,
        "branches": {"ranked": 3 - number, "imitated": 1 + number, "dropped": 0, "unscored": 0},
        "rewards": {"plain": {"mean": 0.25 + number}, "guided": {"mean": 1.0 + number}},
        "use": {"tokens": 0.9, "responses": 0.8},
        "use_of_raft": {"tokens": 0.5, "responses": 0.5},
        "optimizer_steps": steps,
    }
    (folder / "manifest.json").write_text(json.dumps(content | manifest))
    costs = {"generated_tokens": 12_345, "seconds": {"save": 0.04, "rollout": 2.0, "optimise": 1_000.0}}
    (folder / "costs.json").write_text(json.dumps(costs))
    lines = [{"row": 0, "prompt": "p", "rewards": each, "by_reward": {"taught": each}} for each in rewards]
    write_lines(folder / "responses.jsonl", lines)
    # From the first line to the second the better response goes up by ½, then down by ¼; the worse one down by 1 each time.
    change = (0.5, -0.25)[number]
    log: list[dict[str, Any]] = [
        {"step": 1, "loss": 1.0, GUIDED: -2.0, PLAIN: -3.0},
        {"step": steps, "loss": 0.5, GUIDED: -2.0 + change, PLAIN: -4.0},
        {"step": steps, "train_runtime": 1.0},
    ]
    write_lines(folder / "metrics.jsonl", log)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Two rounds of 4 and 6 steps, and a third that was killed."""
    write_evaluation(tmp_path / "start", 0.5, None, "words at the start")
    write_round(tmp_path / "round-000", 0, steps=4, rewards=[[0.0, 1.0, 2.0, 3.0], [-1.0, 0.5, 0.0, 4.0]])
    write_round(tmp_path / "round-001", 1, steps=6, rewards=[[0.0, None, 2.0, 3.0], [-1.0, 0.5, 0.0, None]])
    (tmp_path / "round-002").mkdir()
    write_lines(tmp_path / "round-002" / "responses.jsonl", [{"rewards": [9.0, 9.0]}])
    (tmp_path / "config.yaml").write_text("method: psle\n")
    (tmp_path / "costs.json").write_text(json.dumps({"generated_tokens": 30_000}))
    return tmp_path


def read(folder: Path) -> Rounds:
    found = read_rounds(folder)
    assert found is not None
    return found


def note(page: str) -> str:
    return "; ".join(re.findall(r"<p class=\"missing\">(.*?)</p>", page, re.DOTALL))


def test_held_out_measures_stand_at_the_rounds_done(run: Path) -> None:
    rounds = read(run)
    label, done, values = held_out_points(rounds, "gold", "rewards", "gold")
    assert (label, done) == ("gold", [0, 1, 2])
    assert values == [pytest.approx(each) for each in ((1.0, 0.9, 1.2), (2.0, 1.9, 2.2), (4.0, 3.9, 4.2))]
    assert held_out_points(rounds, "", "win_rate")[1] == [1, 2]  # the start has none against itself
    assert (
        held_out_points(rounds, "", "rewards", "manners")[1] == []
        and held_out_points(rounds, "", "kl_per_sequence", "nothing", "here")[1] == []
    )


def test_what_the_manifests_say_of_the_rounds(run: Path) -> None:
    """Thresholds 0.3 and 0.15; gains 1 − ¼ in both; 3 + 1 couples, then 2 + 2; branches that never occur are left out."""
    rounds = read(run)
    assert manifest_points(rounds, "t", "threshold") == ("t", [0, 1], [(0.3, 0.3, 0.3), (0.15, 0.15, 0.15)])
    assert gains(rounds, "gain") == ("gain", [0, 1], [(0.75, 0.75, 0.75)] * 2)
    assert branch_shares(rounds) == [("ranked", [0.75, 0.5]), ("imitated", [0.25, 0.5])]


def test_one_row_per_round(run: Path) -> None:
    head, rows = table(read(run))
    assert head[:7] == ["round", "τ", "threshold τ·σ₀", "ranked", "imitated", "dropped", "unscored"]
    assert head[7:] == [
        *("mean reward, plain", "mean reward, under the principles", "optimiser steps", "tokens generated"),
        *("seconds, rollout", "seconds, optimise", "seconds, save"),
    ]
    same = ["12,345", "2.0", "1,000.0", "0.0"]
    assert rows == [
        ["0", "0.200", "0.300", "3", "1", "0", "0", "0.250", "1.000", "4", *same],
        ["1", "0.100", "0.150", "2", "2", "0", "0", "1.250", "2.000", "6", *same],
    ]


def test_couples_without_both_rewards_are_in_no_histogram(run: Path) -> None:
    first, second = read(run).done
    assert (first.plain, first.guided, first.unscored) == ([0.0, 1.0, -1.0, 0.5], [2.0, 3.0, 0.0, 4.0], 0)
    assert (second.plain, second.guided, second.unscored) == ([0.0, -1.0], [2.0, 0.0], 2)


def test_steps_are_counted_through_the_rounds(run: Path) -> None:
    """Round 0 has 4 steps, so that round 1's step 1 is the 5th and its last the 10th."""
    series, borders = displacement(read(run))
    assert series == [
        ("under the principles", [([1, 4], [-2.0, -1.5]), ([5, 10], [-2.0, -2.25])]),
        ("plain", [([1, 4], [-3.0, -4.0]), ([5, 10], [-3.0, -4.0])]),
    ]
    assert borders == [4]


def test_the_sentence_on_displacement(run: Path) -> None:
    """(½ − ¼)/2 = +0.125 for the better response, −1 for the worse one."""
    said = displacement_verdict(read(run))
    assert "+0.125 under the principles (down in 1 of 2 rounds) and -1.000 plain (down in 2 of 2 rounds)" in said
    assert said.endswith("the worse response of a couple falls, the better one does not.")
    lines = [{"step": 1, GUIDED: 0.0, PLAIN: 0.0}, {"step": 2, GUIDED: -2.0, PLAIN: -1.0}]
    write_lines(run / "round-000" / "metrics.jsonl", lines)
    assert displacement_verdict(read(run)).endswith("both fall.")  # (−2 − ¼)/2
    for name in ("round-000", "round-001"):
        write_lines(run / name / "metrics.jsonl", lines[:1])
    assert displacement_verdict(read(run)) == ""


def test_what_the_figures_get(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: dict[str, tuple[Any, ...]] = {}
    monkeypatch.setattr(figures, "with_intervals", lambda *a, **k: drawn.setdefault(a[1], (a[0], a[2], k)) and "")
    monkeypatch.setattr(figures, "stacked", lambda *a: drawn.setdefault(a[3], a) and "")
    monkeypatch.setattr(figures, "distributions", lambda *a: drawn.setdefault(a[2], a) and "")
    monkeypatch.setattr(figures, "segmented_curves", lambda *a: drawn.setdefault(a[2], a) and "")
    found = round_figures.section(read(run))
    assert [(heading, len(those)) for heading, _, those in found.groups] == [
        *(("Held-out prompts", 3), ("What the rounds learn from", 4), ("Rewards of the responses", 2)),
        *(("Distance from the start", 4), ("Displacement", 1)),
    ]
    # `taught` is the reward trained on, so it has no second figure; `manners` was never applicable.
    assert {"reward taught, trained on", "judge gold", "win rate against the start"} < set(drawn)
    assert not {name for name in drawn if "manners" in name or name == "judge taught"}
    assert drawn["win rate against the start"][2]["level"] == 0.5
    assert drawn["judge gold"][1] == "rounds completed" and drawn["reward"][1] == "round"
    assert [label for label, _, _ in drawn["reward"][0]] == ["threshold τ·σ₀", "mean gain"]
    use = drawn["(Σw)²/(n·Σw²) of the responses"][0]
    assert [(label, values[0][0]) for label, _, values in use] == [
        ("this run", 0.8),
        ("RAFT on the same responses", 0.5),
    ]
    assert [label for label, _, _ in drawn["refusals, share"][0]] == ["all prompts"]  # no prompt is labelled
    before, after, _, labels, _, span = drawn["reward in round 1"]
    assert (before, after, labels) == ([0.0, -1.0], [2.0, 0.0], ("plain", "under the principles"))
    assert span == drawn["reward in round 0"][5] == (-1.0, 4.0)  # one scale for all rounds
    assert any("2 couples without a reward left out" in text for text, _ in found.groups[2][2])


@pytest.mark.slow
def test_the_page(run: Path) -> None:
    page = write_report(run).read_text(encoding="utf-8")
    assert "<h2>Rounds</h2>" in page and "<h3>Training</h3>" in page and "30,000" in page
    assert "without a manifest.json, are left out: round-002." in note(page) and "This folder lacks" not in page
    assert "words at the start" in page and "after 2 rounds · taught 2, gold —" in page
    assert "words &lt;b&gt;after&lt;/b&gt; round 1" in page and "after&lt;/b&gt; round 0" not in page
    assert page.count("data:image/svg+xml;base64,") == 14
    assert re.findall(r"(?:src|href)=\"(?!data:)", page) == [] and "http" not in re.sub(r"base64,[^\"]+", "", page)


def test_samples_are_of_the_same_prompt(run: Path) -> None:
    done, pairs = side_by_side(read(run))
    assert done == 2 and [pair["prompt"] for pair in pairs] == ["prompt 1", "prompt 2"]
    assert pairs[0]["base_rewards"] == {"taught": 0.5, "gold": None} and pairs[0]["rewards"]["taught"] == 2.0
    (run / "round-001" / "evaluation.jsonl").unlink()
    assert side_by_side(read(run))[0] == 1  # the last look that there is
    (run / "start" / "evaluation.jsonl").unlink()
    assert side_by_side(read(run)) == (1, [])


@pytest.mark.slow
def test_missing_files_are_named(run: Path) -> None:
    (run / "start" / "evaluation.json").unlink()
    (run / "round-000" / "evaluation.json").unlink()
    (run / "round-001" / "responses.jsonl").unlink()
    (run / "round-001" / "costs.json").unlink()
    write_lines(run / "round-000" / "metrics.jsonl", [{"step": 4, "train_runtime": 1.0}])
    rounds = read(run)
    assert held_out_points(rounds, "", "reward")[1] == [2] and table(rounds)[1][1][-4:] == ["—"] * 4
    assert [[len(steps) for steps, _ in parts] for _, parts in displacement(rounds)[0]] == [[2], [2]]
    assert displacement(rounds)[0][0][1][0][0] == [5, 10]  # round 0's steps count, though it logged none
    said = note(write_report(run).read_text(encoding="utf-8"))
    for words in (
        "evaluation.json of start, round-000;",
        "responses.jsonl of round-001",
        "costs.json of round-001",
        "(a run logs them every logging_steps) of round-000",
    ):
        assert words in said


@pytest.mark.slow
def test_a_run_that_was_not_measured(run: Path) -> None:
    for path in run.glob("*/evaluation.json*"):
        path.unlink()
    page = write_report(run).read_text(encoding="utf-8")
    assert "evaluation.json of start, round-000, round-001" in note(page)
    assert "Distance from the start" not in page and "before and after" not in page and "Displacement" in page


def test_nothing_is_missing_where_nothing_was_ranked(run: Path) -> None:
    write_round(run / "round-000", 0, steps=4, rewards=[[0.0, 1.0]], branches={"ranked": 0, "imitated": 1})
    write_lines(run / "round-000" / "metrics.jsonl", [{"step": 4, "loss": 1.0}])
    assert read(run).missing == []


def test_without_principles_both_halves_are_plain(run: Path) -> None:
    for number in (0, 1):
        write_round(run / f"round-00{number}", number, steps=4, rewards=[[0.0, 1.0]], principles=None)
    rounds = read(run)
    assert rounds.sides == ("plain, first half", "plain, second half")
    assert [label for label, _ in displacement(rounds)[0]] == ["plain, second half", "plain, first half"]
    assert "principles" not in " ".join(table(rounds)[0])


def test_a_run_without_a_finished_round(run: Path) -> None:
    for path in run.glob("round-*/manifest.json"):
        path.unlink()
    assert read_rounds(run) is None
    with pytest.raises(FrugalignError, match="has no complete round"):
        write_report(run)
    (run / "round-000" / "manifest.json").write_text("{")
    with pytest.raises(FrugalignError, match="is not valid JSON"):
        write_report(run)
