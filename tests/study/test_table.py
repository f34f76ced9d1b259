"""Rows of a study from cells written by hand: differences against the base or another line, win rates, sweeps and the Pareto front."""

import json
from pathlib import Path
from typing import Any

import pytest

from frugalign.metrics import Estimate
from frugalign.metrics.two_way import crossed_mean
from frugalign.reports.study.comparison_figures import figures_of, pareto
from frugalign.reports.study.curve_figures import _prompts_a_step
from frugalign.reports.study.headline import headline
from frugalign.reports.study.page import markdown
from frugalign.reports.study.summary import summary_of
from frugalign.reports.study.sweep_figures import sweeps
from frugalign.runs.layout import CONFIG_FILE
from frugalign.study.options import StudyOptions
from frugalign.study.plan import cells_of, lines_of, swept
from frugalign.study.runner import read_study
from frugalign.study.table import _over_seeds, by_prompt, rows_of

COSTS = {"generated_tokens": 10, "lm_forward_tokens": 100, "wall_clock_seconds": 2.0}
DECODING = {"generated_tokens": 5.0, "lm_forward_tokens": 9.0, "reward_calls": 0.0, "seconds": 0.01}


def study(folder: Path, methods: dict[str, Any], **options: Any) -> StudyOptions:
    given: dict[str, Any] = {
        "model_name_or_path": "model",
        "dataset_name": "prompts",
        "reward": ["learned"],
        "judges": ["gold"],
        "seeds": [1, 2],
        "methods": methods,
        "output_dir": str(folder),
    }
    return StudyOptions(**given | options)


def finish(options: StudyOptions, gold: dict[str, list[list[float]]], *, costs: dict[str, float] | None = None) -> None:
    """Cells as if they had been run: `gold[label][seed]`, a value per prompt; the base's are 0."""
    for cell in cells_of([each for line in lines_of(options) for each in swept(line)], options):
        values = gold[cell.line.label][options.seeds.index(cell.seed)]
        folder = cell.folder(Path(options.output_dir))
        (folder / "evaluation").mkdir(parents=True)
        lines = [
            {
                "prompt": f"p{number}",
                "policy": "a" * (3 + number),
                "base": "aaa",
                "rewards": {"gold": value, "learned": 1.0},
                "base_rewards": {"gold": 0.0, "learned": 0.5},
            }
            for number, value in enumerate(values)
        ]
        (folder / "evaluation" / "samples.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        kl = {"mean": 1.0, "ci_low": 0.5, "ci_high": 1.5, "n": 4}
        spent = COSTS | {"lm_forward_tokens": (costs or {}).get(cell.line.label, 100.0)}
        result = {
            "asks": cell.asks,
            "metrics": {"reward": kl, "decoding": DECODING, "kl_per_sequence": kl},
            "costs": spent | {"trainable_parameters": 10, "base_parameters": 1000},
            "machine": {"device": "some"},
        }
        (folder / "cell.json").write_text(json.dumps(result))


GOLD = {
    "base": [[0.0, 0.0, 0.0, 0.0]] * 2,
    "sft": [[1.0, 1.0, 0.0, 0.0], [1.0, 0.0, 0.0, 1.0]],
    "dpo": [[2.0, 2.0, 1.0, -1.0], [2.0, 2.0, 1.0, 1.0]],
}
METHODS: dict[str, Any] = {"base": None, "sft": {}, "dpo": {"beta": 0.1}}


def test_differences_are_to_the_base_on_the_same_prompts_and_seeds(tmp_path: Path) -> None:
    options = study(tmp_path, METHODS)
    finish(options, GOLD)
    base, sft, dpo = rows_of(read_study(options))
    assert base.main.difference is None and base.win_rate is None
    expected = crossed_mean(GOLD["dpo"])
    assert expected is not None and dpo.main.difference == expected.estimate and dpo.main.p_value == expected.p_value
    assert list(dpo.measures) == ["gold", "learned"] and dpo.measures["learned"].p_holm is None
    assert dpo.win_rate is not None and dpo.win_rate.mean == pytest.approx(7 / 8)
    assert sft.win_rate is not None and sft.win_rate.mean == pytest.approx((4 + 4 * 0.5) / 8)
    # Holm over two lines: the smaller p doubles.
    assert sft.main.p_value is not None and dpo.main.p_value is not None
    assert sorted([sft.main.p_holm, dpo.main.p_holm])[0] == pytest.approx(2 * min(sft.main.p_value, dpo.main.p_value))  # type: ignore[type-var]
    assert dpo.costs["lm_forward_tokens"] == 100 and dpo.decoding == DECODING


def test_another_line_can_be_the_reference(tmp_path: Path) -> None:
    options = study(tmp_path, METHODS, reference="sft")
    finish(options, GOLD)
    base, sft, dpo = rows_of(read_study(options))
    assert sft.main.difference is None
    assert base.main.difference is not None and base.main.difference.mean == pytest.approx(-0.5)
    assert dpo.main.difference is not None and dpo.main.difference.mean == pytest.approx(1.25 - 0.5)
    summary = summary_of(read_study(options), rows_of(read_study(options)), "x.yaml")
    assert "to sft" in headline(summary)[0] and "difference to sft" in markdown(summary)


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
    assert level == "Not told apart from the base after the correction: cheap; still."
    assert still == "Hardly moved by their training: still." and "decoded greedily" in greedy


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
    said = "Refuse more of the prompts that are labelled safe: mute 98%, afraid 75%; the base refuses 10%."
    assert said in headline(summary)
    compared = {"reference": "afraid"}
    said = "Refuse more of the prompts that are labelled safe: mute 98%; afraid refuses 75%."
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


def test_a_line_whose_seed_has_no_reference_is_compared_on_the_others(tmp_path: Path) -> None:
    options = study(tmp_path, METHODS, reference="sft")
    finish(options, GOLD)
    gone = next(outcome for outcome in read_study(options).outcomes if outcome.cell.name == "sft, seed 2")
    (gone.folder / "cell.json").unlink()
    dpo = rows_of(read_study(options))[2]
    assert dpo.main.value.mean == pytest.approx(1.25)
    assert dpo.main.difference is not None and dpo.main.difference.mean == pytest.approx(1.0 - 0.5)


def test_a_share_that_no_seed_moves_keeps_the_interval_over_its_prompts() -> None:
    never = {"mean": 0.0, "ci_low": 0.0, "ci_high": 0.02, "n": 200}
    assert _over_seeds([never, never, never], share=True) == Estimate(0.0, 0.0, 0.02, 200)
    once = never | {"mean": 0.01}
    found = _over_seeds([never, never, once], share=True)
    assert found is not None and found.mean == pytest.approx(1 / 300) and found.ci_high > 0.02


def test_what_cannot_be_negative_has_no_interval_below_zero() -> None:
    kls = [{"mean": mean, "ci_low": 0.0, "ci_high": 1.0, "n": 9} for mean in (0.1, 0.2, 0.9)]
    found = _over_seeds(kls)
    assert found is not None and found.mean == pytest.approx(0.4) and found.ci_low == 0.0 < found.ci_high


def test_several_samples_of_a_prompt_are_one_value() -> None:
    assert by_prompt([1.0, 3.0, None, 5.0, None, None], 2) == [2.0, 5.0, None]


def test_a_training_that_is_gone_is_said(tmp_path: Path) -> None:
    options = study(tmp_path, {"base": None, "dpo": {"beta": 0.1}})
    finish(options, GOLD)
    found = read_study(options)
    for outcome in found.outcomes[:3]:
        outcome.training.mkdir(parents=True)
    (left,) = summary_of(found, rows_of(found), "x.yaml")["missing"]
    assert left["cell"] == "dpo, seed 2" and "is gone, and with it figures" in left["why"]


def test_prompts_that_a_proxy_has_seen(tmp_path: Path) -> None:
    """A rollout of 32 completions, four to a prompt, is 8 prompts; two passes over two minibatches are 4 steps: 2 prompts each."""
    config = "per_device_train_batch_size: 32\nnum_generations: 4\nnum_iterations: 2\nnum_mini_batches: 2\n"
    (tmp_path / CONFIG_FILE).write_text(config)
    assert _prompts_a_step(tmp_path) == 2.0


def test_the_front_is_what_nothing_beats_at_its_cost() -> None:
    """(1, 1) is cheapest, (2, 3) better, (3, 2) dearer and worse, (3, 4) best; a twin of (2, 3) is no worse."""
    assert pareto([(1, 1), (2, 3), (3, 2), (3, 4), (2, 3)]) == [0, 1, 3, 4]


def test_figures_of_a_sweep(tmp_path: Path) -> None:
    """Three values of p_t make a curve, distributions beside SFT's, and no figure for what does not move."""
    methods = {"sft": {}, "proxy": {"p_t": [0.1, 0.01, 0.001], "beta": 0.4}}
    options = study(tmp_path, methods)
    labels = ["proxy p_t=0.1", "proxy p_t=0.01", "proxy p_t=0.001"]
    gold = {label: [[0.0, 1.0, 2.0, float(n)]] * 2 for n, label in enumerate(labels)} | {"sft": GOLD["sft"]}
    finish(options, gold, costs={"sft": 10.0})
    rows = rows_of(read_study(options))
    assert [(name, [row.line.setting["p_t"] for row in same]) for name, same in sweeps(rows)] == [
        ("p_t", [0.001, 0.01, 0.1])
    ]
    found = figures_of(rows, "gold", "the base")
    titles = [figure.title for figure in found]
    assert titles == [
        "Quality against cost",
        "Quality against distance from the base",
        "Win rate against the base",
        "How the judge's values are distributed",
        "proxy: gold over p_t",
        "proxy: distributions over p_t",
    ]
    assert all(figure.uri.startswith("data:image/svg+xml;base64,") and figure.caption for figure in found)
