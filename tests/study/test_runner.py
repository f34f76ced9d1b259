"""The runner with cells that take no time: done ones are skipped, failed ones are reported and do not stop the rest, sweeps are decided once."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from frugalign.base.errors import FrugalignError
from frugalign.study import runner as running
from frugalign.study.checks import check_lines
from frugalign.study.options import StudyOptions
from frugalign.study.plan import Cell, Line, choosing_cells, lines_of
from frugalign.study.runner import read_study, run_study

_PLAY = """
import json, os, pathlib, sys
folder = pathlib.Path(sys.argv[1])
request = json.loads((folder / "request.json").read_text())
setting = request["setting"]
if setting.get("dies"):
    os.kill(os.getpid(), 9)
if setting.get("fails"):
    (folder / "failed.json").write_text(json.dumps({"error": "there is no reward at X."}))
    sys.exit(2)
good = setting.get("good", 0)
warnings = ["the reward is constant"] if setting.get("warns") else []
value = None if good == "none" else {"mean": float(good), "ci_low": 0, "ci_high": 1, "n": 1}
(folder / "cell.json").write_text(json.dumps({"request": request, "metrics": {"reward": value}, "costs": {}, "warnings": warnings}))
"""


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Cells are played by a script; their names in the order in which they began."""
    names: list[str] = []

    def start(cell: Cell, options: StudyOptions, launcher: object) -> subprocess.Popen[bytes]:
        names.append(cell.name)
        folder = cell.folder(Path(options.output_dir))
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "request.json").write_text(json.dumps(cell.request))
        (folder / "failed.json").unlink(missing_ok=True)
        return subprocess.Popen([sys.executable, "-c", _PLAY, str(folder)])

    monkeypatch.setattr(running, "_start", start)
    # The options good, fails and dies, and what the study names, are for the play alone.
    monkeypatch.setattr(running, "check_study", lambda options, lines: None)
    monkeypatch.setattr(running, "_POLL", 0.01)
    return names


def study(folder: Path, methods: dict[str, Any], **options: Any) -> StudyOptions:
    given: dict[str, Any] = {
        "model_name_or_path": "model",
        "dataset_name": "prompts",
        "reward": ["reward"],
        "judges": ["gold"],
        "output_dir": str(folder),
        "seeds": [1, 2],
        "methods": methods,
        "jobs": 2,
    }
    return StudyOptions(**given | options)


def test_done_cells_are_skipped_and_new_seeds_run(tmp_path: Path, started: list[str]) -> None:
    methods = {"base": None, "dpo": {"good": 1}}
    found = run_study(study(tmp_path, methods))
    assert not found.missing and len(started) == 4
    run_study(study(tmp_path, methods, seeds=[1, 2, 3]))
    assert started[4:] == ["base, seed 3", "dpo, seed 3"]
    # Another setting is another cell, and the old one stays.
    run_study(study(tmp_path, {"base": None, "dpo": {"good": 2}}))
    assert started[6:] == ["dpo, seed 1", "dpo, seed 2"]
    assert not read_study(study(tmp_path, methods, seeds=[1, 2, 3])).missing


def test_a_failed_cell_is_reported_and_tried_again(
    tmp_path: Path, started: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    methods = {"rloo": {"fails": True}, "grpo": {"dies": True}, "dpo": {"good": 1}}
    found = run_study(study(tmp_path, methods, seeds=[1]))
    assert {outcome.cell.line.label: outcome.error for outcome in found.missing} == {
        "rloo": "there is no reward at X",
        "grpo": "its process ended with status -9",
    }
    assert [outcome.cell.line.label for outcome in found.outcomes if outcome.result] == ["dpo"]
    assert "rloo, seed 1 failed" in caplog.text and "log.txt" in caplog.text
    run_study(study(tmp_path, methods, seeds=[1]))
    assert sorted(started[3:]) == ["grpo, seed 1", "rloo, seed 1"]


def test_only_runs_its_lines_and_the_rest_is_missing(tmp_path: Path, started: list[str]) -> None:
    found = run_study(study(tmp_path, {"base": None, "dpo": None}, only=["dpo"]))
    assert started == ["dpo, seed 1", "dpo, seed 2"]
    assert [outcome.cell.name for outcome in found.missing] == ["base, seed 1", "base, seed 2"]
    run_study(study(tmp_path, {"base": None, "dpo": None}, only=["base:2"]))
    assert started[2:] == ["base, seed 2"]


def test_a_sweep_is_decided_by_the_main_judge_before_any_test_cell(tmp_path: Path, started: list[str]) -> None:
    methods = {"base": None, "dpo": {"good": [1, 3, 2]}}
    found = run_study(study(tmp_path, methods, choose={"seed": 9}))
    assert all("choosing" in name for name in started[:3]) and not any("choosing" in name for name in started[3:])
    assert [(line.label, line.setting) for line in found.lines] == [("base", {}), ("dpo", {"good": 3})]
    kept = json.loads((tmp_path / "chosen.json").read_text())["dpo"]
    assert kept["setting"] == {"good": 3} and kept["tried"] == {"dpo good=1": 1.0, "dpo good=3": 3.0, "dpo good=2": 2.0}
    run_study(study(tmp_path, methods, choose={"seed": 9}))
    assert len(started) == 3 + 4, "nothing is run twice"


def test_a_sweep_whose_settings_all_fail_has_no_line(tmp_path: Path, started: list[str]) -> None:
    found = run_study(study(tmp_path, {"base": None, "dpo": {"fails": [True, 1]}}, choose={"seed": 9}))
    assert [line.label for line in found.lines] == ["base"]
    assert found.chosen["dpo"]["setting"] is None and len(found.chosen["dpo"]["failed"]) == 2
    assert [outcome.cell.name for outcome in found.wanted_missing] == [
        "dpo fails=True, seed 9, choosing",
        "dpo fails=1, seed 9, choosing",
    ]


def test_a_choice_is_made_once(tmp_path: Path, started: list[str]) -> None:
    """A setting that failed while the others were chosen among, and now would win, changes nothing: the test has been read."""
    options = study(tmp_path, {"dpo": {"good": [1, 3, 2]}}, choose={"seed": 9}, seeds=[1])
    best = next(cell for cell in choosing_cells(lines_of(options)[0], options) if cell.line.setting == {"good": 3})
    folder = best.folder(tmp_path)
    folder.mkdir(parents=True)
    (folder / "failed.json").write_text(json.dumps({"error": "its process ended"}))
    # The runner tries failed cells again, so this one fails again.
    real = running._start
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            running,
            "_start",
            lambda cell, given, launcher: (
                real(cell, given, launcher)
                if cell != best
                else subprocess.Popen([sys.executable, "-c", "raise SystemExit(1)"])
            ),
        )
        first = run_study(options)
    assert [line.setting for line in first.lines] == [{"good": 2}] and "dpo good=3" in first.chosen["dpo"]["failed"]
    again = run_study(options)
    assert [line.setting for line in again.lines] == [{"good": 2}] and not again.missing
    # Another sweep is another choice.
    assert run_study(study(tmp_path, {"dpo": {"good": [1, 4]}}, choose={"seed": 9}, seeds=[1])).lines[0].setting == {
        "good": 4
    }


def test_a_judge_without_a_value_does_not_choose(tmp_path: Path, started: list[str]) -> None:
    found = run_study(study(tmp_path, {"dpo": {"good": [1, "none"]}}, choose={"seed": 9}, seeds=[1]))
    assert found.lines[0].setting == {"good": 1}


def test_without_choose_every_setting_is_a_line(tmp_path: Path, started: list[str]) -> None:
    found = run_study(study(tmp_path, {"dpo": {"good": [1, 3]}}, seeds=[1], only=["dpo"]))
    assert [line.label for line in found.lines] == ["dpo good=1", "dpo good=3"] and not found.missing


def test_an_option_that_a_method_does_not_have_is_refused_before_anything_runs(tmp_path: Path) -> None:
    for method, option, words in (
        ("dpo", "learning_rat", "did you mean learning_rate?"),
        ("best_of_n", "beta", "gives best_of_n the option 'beta'"),
        ("kto", "num_generations", "which it does not have"),
        ("dpo", "seed", "which the study sets for every line"),
        ("ipo", "loss_type", "which the study sets for every line"),
        ("rerank", "eval_steps", "which a study offers for proxy only"),
        ("dpo", "shift_reward", "which a study offers for rerank and online_dpo only"),
        ("rloo", "max_steps", "follows from the budget"),
        ("robust_dpo", "beta", "needs label_smoothing"),
    ):
        with pytest.raises(FrugalignError, match=words.replace("?", r"\?")):
            run_study(study(tmp_path, {"base": None, method: {option: 1}}, budget={"optimizer_steps": 8}))
    assert not (tmp_path / "cells").exists()


def test_an_option_of_the_methods_own_takes_its_own_values() -> None:
    """`train` of a TRL trainer has no proxy; that of our methods has one."""
    for method in ("psle", "dpo", "rerank", "raft"):
        check_lines([Line(method, method, {"train": "proxy"})])
    for method in ("sft", "ipo", "rloo"):
        with pytest.raises(FrugalignError, match="train is 'proxy'; it must be one of lora, full"):
            check_lines([Line(method, method, {"train": "proxy"})])


SANDBOX: dict[str, Any] = {
    "model_name_or_path": "frugalign.sandbox:model",
    "dataset_name": "frugalign.sandbox:study_prompts",
    "reward": ["frugalign.sandbox:gold"],
    "judges": ["frugalign.sandbox:gold", "frugalign.sandbox:rude"],
    "principles": "harmless",
}


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"dataset_name": "./no-such-prompts"}, "no-such-prompts"),
        ({"model_name_or_path": "./no-such-model"}, "No model in ./no-such-model"),
        ({"reward": ["frugalign.sandbox:godl"]}, "has no 'godl'"),
        ({"judges": ["frugalign.sandbox:godl"]}, "has no 'godl'"),
        ({"principles": "harmles"}, "There are no principles harmles"),
        ({"preferences": "./no-such-pairs"}, "no-such-pairs"),
        ({"representation_reward": "./no-such-probes"}, "no reward at ./no-such-probes"),
        ({"model_judge": "./no-such-judge"}, "No model in ./no-such-judge"),
        ({"trainings_dir": "no-such-folder"}, "trainings_dir names no-such-folder, which is not a folder"),
        ({"methods": {"rerank": {"shift_reward": "frugalign.sandbox:godl"}}}, "has no 'godl'"),
        ({"methods": {"base": {"in_context": ["harmless", "harmles"]}}}, "There are no principles harmles"),
        ({"methods": {"best_of_n": {"in_context": 3}}}, "in_context is 3; it must be"),
    ],
)
def test_what_a_study_names_is_looked_up_before_its_first_cell(
    tmp_path: Path, given: dict[str, Any], words: str
) -> None:
    with pytest.raises(FrugalignError, match=words):
        run_study(study(tmp_path, **SANDBOX | {"methods": {"base": None, "psle": {}}} | given))
    assert not (tmp_path / "cells").exists()


def test_a_study_whose_names_all_stand_for_something_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A judge may be watched, and be the reward; nothing is wrong with that."""
    monkeypatch.setattr(running, "run_cells", lambda cells, options: None)
    watched = {"shift_reward": ["frugalign.sandbox:gold", "frugalign.sandbox:rude"]}
    methods = {"base": None, "psle": {}, "rerank": watched}
    assert len(run_study(study(tmp_path, methods, **SANDBOX)).missing) == 8


def test_two_commands_do_not_run_one_study(tmp_path: Path, started: list[str]) -> None:
    """The second would take what the first is at work on for failed, and choose without it."""
    code = f"import filelock, time; lock = filelock.FileLock({str(tmp_path / '.lock')!r}); lock.acquire(); print(flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as other:
        assert other.stdout is not None and other.stdout.readline() == b"\n"
        try:
            with pytest.raises(FrugalignError, match="Another command is using"):
                run_study(study(tmp_path, {"base": None}))
        finally:
            other.kill()
    assert not started and not run_study(study(tmp_path, {"base": None})).missing


def test_cells_that_choose_can_be_run_alone(tmp_path: Path, started: list[str]) -> None:
    def only_these(*only: str) -> StudyOptions:
        methods = {"base": None, "dpo": {"good": [1, 2]}, "dpo long": {"method": "dpo", "good": [3, 4]}}
        return study(tmp_path, methods, choose={"seed": 9}, seeds=[1], only=list(only))

    found = run_study(only_these("dpo good=1"))
    assert started == ["dpo good=1, seed 9, choosing"] and not found.wanted_missing
    run_study(only_these("dpo good=2:9"))
    assert started[1:] == ["dpo good=2, seed 9, choosing"]
    found = run_study(only_these("dpo"))
    assert started[2:] == ["dpo, seed 1"] and not found.wanted_missing
    assert [outcome.cell.line.label for outcome in found.missing if outcome.cell.kind == "choosing"] == [
        "dpo long good=3",
        "dpo long good=4",
    ]


def test_a_runner_that_is_told_to_stop_stops_its_cells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cells: list[subprocess.Popen[bytes]] = []

    def start(cell: Cell, options: StudyOptions, launcher: object) -> subprocess.Popen[bytes]:
        cells.append(subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]))
        return cells[-1]

    def stop(_: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(running, "_start", start)
    monkeypatch.setattr(running, "check_study", lambda options, lines: None)
    monkeypatch.setattr("frugalign.study.runner.time.sleep", stop)
    with pytest.raises(KeyboardInterrupt):
        run_study(study(tmp_path, {"base": None, "dpo": None}))
    assert len(cells) == 2 and all(cell.returncode is not None for cell in cells)


def test_it_says_how_many_trainings_are_there(
    tmp_path: Path, started: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Of the methods that train; with a folder of another study also where there are none."""
    (tmp_path / "trainings").mkdir()
    options = study(
        tmp_path, {"base": None, "dpo": {}, "ipo": {}}, seeds=[1], trainings_dir=str(tmp_path / "trainings")
    )
    dpo = next(outcome for outcome in read_study(options).outcomes if outcome.cell.line.label == "dpo")
    run_study(study(tmp_path, {"base": None}, seeds=[1]))
    assert "trainings" not in capsys.readouterr().out
    run_study(study(tmp_path, {"kto": {}}, seeds=[1], trainings_dir=str(tmp_path / "trainings")))
    assert "0 of 1 trainings of the other cells are finished already" in capsys.readouterr().out
    dpo.training.mkdir()
    (dpo.training / "trained.json").write_text("{}")
    run_study(options)
    assert "1 of 2 trainings of the other cells are finished already" in capsys.readouterr().out


def test_a_warning_of_several_cells_is_repeated_once(
    tmp_path: Path, started: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    run_study(study(tmp_path, {"base": None, "dpo": {"warns": True}}))
    assert len(started) == 4
    assert len([text for text in caplog.messages if text.endswith(": the reward is constant")]) == 1
