"""Readers of a run folder: what is there, what is missing, what is damaged. `tests/test_architecture.py` keeps the names in one place."""

import json
import os
from pathlib import Path

import pytest

from frugalign.base.errors import FrugalignError
from frugalign.base.ledger import Ledger
from frugalign.runs.layout import (
    checkpoints_in,
    evaluation_costs_file,
    evaluation_of,
    read_costs,
    read_log,
    read_manifest,
    read_metrics,
    read_reward_report,
    read_samples,
    read_settings,
    read_shift,
    rounds_in,
)


def test_an_empty_folder(tmp_path: Path) -> None:
    assert read_settings(tmp_path) == read_metrics(tmp_path) == read_costs(tmp_path) == {}
    assert read_log(tmp_path) == read_samples(tmp_path) == rounds_in(tmp_path) == checkpoints_in(tmp_path) == []
    assert read_shift(tmp_path) is read_reward_report(tmp_path) is read_manifest(tmp_path) is None
    assert evaluation_of(tmp_path) == tmp_path


def test_a_damaged_file_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(FrugalignError, match=r"manifest\.json is not valid JSON"):
        read_manifest(tmp_path)


def test_costs_of_an_evaluation_go_beside_those_of_a_training(tmp_path: Path) -> None:
    assert evaluation_costs_file(tmp_path).name == "costs.json"
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n')
    assert evaluation_costs_file(tmp_path).name == "evaluation_costs.json"
    ledger = Ledger()
    ledger.count(lm_forward_tokens=7)
    ledger.save(tmp_path / "costs.json")
    assert read_costs(tmp_path)["lm_forward_tokens"] == 7


def test_the_newest_evaluation_below_a_run(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "metrics.json").write_text(json.dumps({"name": name}))
    os.utime(tmp_path / "two" / "metrics.json", (1, 1))
    assert evaluation_of(tmp_path) == tmp_path / "one"
    (tmp_path / "metrics.json").write_text("{}")
    assert evaluation_of(tmp_path) == tmp_path


def test_rounds_and_checkpoints_by_number_and_other_folders_left_alone(tmp_path: Path) -> None:
    for name in ("round-010", "round-002", "round-1000", "round-3", "round-of-mine", "checkpoint-9", "checkpoint-10"):
        (tmp_path / name).mkdir()
    assert rounds_in(tmp_path) == [2, 10, 1000]
    for name in ("checkpoint-9", "checkpoint-10"):
        (tmp_path / name / "frugalign.json").write_text("{}")
    (tmp_path / "checkpoint-11").mkdir()
    assert [path.name for path in checkpoints_in(tmp_path)] == ["checkpoint-9", "checkpoint-10"]
