"""What a study's summary says is missing."""

from pathlib import Path

from tests.study.written_cells import GOLD, finish, study

from frugalign.reports.study.summary import summary_of
from frugalign.study.runner import read_study
from frugalign.study.table import rows_of


def test_a_training_that_is_gone_is_said(tmp_path: Path) -> None:
    options = study(tmp_path, {"base": None, "dpo": {"beta": 0.1}})
    finish(options, GOLD)
    found = read_study(options)
    for outcome in found.outcomes[:3]:
        outcome.training.mkdir(parents=True)
    (left,) = summary_of(found, rows_of(found), "x.yaml")["missing"]
    assert left["cell"] == "dpo, seed 2" and "was deleted, so figures of its training are missing" in left["why"]
