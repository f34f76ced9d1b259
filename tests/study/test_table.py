"""Rows of a study from cells written by hand: differences against the base or another line, intervals, several samples of a prompt."""

from pathlib import Path

import pytest
from tests.study.written_cells import DECODING, GOLD, METHODS, finish, study

from frugalign.metrics import Estimate
from frugalign.metrics.two_way import two_way_mean
from frugalign.reports.study.headline import headline
from frugalign.reports.study.page import markdown
from frugalign.reports.study.summary import summary_of
from frugalign.study.runner import read_study
from frugalign.study.table import _over_seeds, by_prompt, rows_of


def test_differences_are_to_the_base_on_the_same_prompts_and_seeds(tmp_path: Path) -> None:
    options = study(tmp_path, METHODS)
    finish(options, GOLD)
    base, sft, dpo = rows_of(read_study(options))
    assert base.main.difference is None and base.win_rate is None
    expected = two_way_mean(GOLD["dpo"])
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
