"""The Pareto front, and the figures of a study with a sweep."""

from pathlib import Path

import pytest
from tests.study.written_cells import GOLD, finish, study

from frugalign.reports.study.comparison_figures import figures_of, pareto
from frugalign.reports.study.sweep_figures import sweeps
from frugalign.study.runner import read_study
from frugalign.study.table import rows_of


def test_the_front_is_what_nothing_beats_at_its_cost() -> None:
    """(1, 1) is cheapest, (2, 3) better, (3, 2) dearer and worse, (3, 4) best; a twin of (2, 3) is no worse."""
    assert pareto([(1, 1), (2, 3), (3, 2), (3, 4), (2, 3)]) == [0, 1, 3, 4]


@pytest.mark.slow
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
        "Distribution of the judge's values",
        "proxy: gold over p_t",
        "proxy: distributions over p_t",
    ]
    assert all(figure.uri.startswith("data:image/svg+xml;base64,") and figure.caption for figure in found)
