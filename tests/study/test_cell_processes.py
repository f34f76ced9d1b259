"""What a cell is to others: a process of its runner, a lock, a training to use again, and a line of the command and the page."""

import json
import logging
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from tests.study.small_cells import options, planned_cell, run

from frugalign.base.errors import FrugalignError
from frugalign.cli.main import main
from frugalign.reports.study.page import write_study
from frugalign.study.cell import run_cell
from frugalign.study.plan import Line, cell_of
from frugalign.study.runner import read_study
from frugalign.study.table import rows_of
from frugalign.study.task import Task


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks at processes in /proc")
@pytest.mark.slow
def test_a_cell_ends_with_its_runner(tmp_path: Path) -> None:
    """A runner that is killed outright cannot stop its cells; one that went on would hold the lock, unseen."""
    runner = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import subprocess, sys; from pathlib import Path\n"
            "code = 'import os, time; from frugalign.study import cell; '\\\n"
            "    'cell.run_cell = lambda *_, **__: [print(os.getpid(), flush=True), time.sleep(60)]; '\\\n"
            "    'cell.main(*\\'abc\\', \\'1\\', \\'1\\')'\n"
            "subprocess.run([sys.executable, '-c', code])",
        ],
        stdout=subprocess.PIPE,
    )
    assert runner.stdout is not None
    cell = int(runner.stdout.readline())
    assert is_alive(cell)
    runner.kill()
    runner.wait()
    waited = time.monotonic() + 20
    while is_alive(cell) and time.monotonic() < waited:
        time.sleep(0.1)
    assert not is_alive(cell)


def is_alive(process: int) -> bool:
    """Whether a process runs; one that nobody has waited for yet does not."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def test_a_file_that_has_changed_since_the_study_began_is_not_taken_for_the_old_one(data: Path, tmp_path: Path) -> None:
    (tmp_path / "judge.py").write_text("def judge(**_): return [0.0]\n")
    cell = planned_cell(data, tmp_path / "study", "base", {}, judges=[f"{tmp_path}/judge.py:judge"])
    (tmp_path / "judge.py").write_text("def judge(**_): return [100.0]\n")
    with pytest.raises(FrugalignError, match=r"judge.py:judge has changed since the study began"):
        run_cell(cell.folder, tmp_path / "start", tmp_path / "trainings")


@pytest.mark.slow
def test_a_training_that_is_done_is_not_done_again(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed in the evaluation, or used by another study in another place: the training is tested, at its cost."""
    (tmp_path / "one").mkdir()
    monkeypatch.chdir(tmp_path / "one")
    setting = {"num_generations": 4, "num_iterations": 1}
    common = Task.common

    def warned(task: Task) -> Any:
        logging.getLogger("frugalign.methods").warning("the training warned")
        return common(task)

    with monkeypatch.context() as patched:
        patched.setattr(Task, "common", warned)
        first, cell = run(data, Path("study"), "proxy", setting)
    assert "the training warned" in first["warnings"]
    (cell.folder / "cell.json").unlink()
    with monkeypatch.context() as patched:
        patched.setattr("frugalign.study.task.Task.common", lambda task: pytest.fail("trained again"))
        again = run_cell(cell.folder, Path("study/start"), Path("study/trainings"))
        assert again["costs"] == first["costs"] and again["training_machine"] == first["training_machine"]
        assert again["warnings"] == first["warnings"], "what it warned of is not lost either"
        # Another judge and fewer prompts.
        (tmp_path / "two").mkdir()
        monkeypatch.chdir(tmp_path / "two")
        there = "../one/study/trainings"
        other = {"judges": ["frugalign.sandbox:rude"], "eval_prompts": 2, "trainings_dir": there}
        second = planned_cell(data, Path("study"), "proxy", setting, **other)
        assert second.training.name == cell.training.name and second.folder.name != cell.folder.name
        result = run_cell(second.folder, Path("study/start"), Path(there))
        assert result["costs"] == first["costs"] and list(result["metrics"]["rewards"]) == ["rude", "gold"]
    # A training whose run is gone is none.
    shutil.rmtree(Path(there) / cell.training.name / "run")
    (second.folder / "cell.json").unlink()
    assert (
        run_cell(second.folder, Path("study/start"), Path(there))["metrics"]["rewards"] == result["metrics"]["rewards"]
    )


@pytest.mark.slow
def test_two_processes_do_not_work_on_one_cell(data: Path, tmp_path: Path) -> None:
    cell = cell_of(Line("base", "base", {}), 1, "test", options(data, tmp_path, methods={"base": None}))
    folder = cell.folder(tmp_path)
    folder.mkdir(parents=True)
    (folder / "request.json").write_text(json.dumps(cell.request))
    # A lock of another process: this one's own could be taken again.
    held = subprocess.Popen(
        [
            sys.executable,
            "-c",
            f"import filelock, time; lock = filelock.FileLock({str(folder / '.lock')!r}); lock.acquire(); print('held', flush=True); time.sleep(60)",
        ],
        stdout=subprocess.PIPE,
    )
    try:
        assert held.stdout is not None and held.stdout.readline() == b"held\n"
        with pytest.raises(FrugalignError, match=f"Another command is using {re.escape(str(folder))}"):
            run_cell(folder, tmp_path / "start", tmp_path / "trainings")
    finally:
        held.kill()
        held.wait()


@pytest.mark.slow
def test_the_command_runs_cells_in_processes_and_says_what_failed(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("broken.py").write_text("def reward(**_):\n    raise ZeroDivisionError('by zero')\n")
    # Four test prompts are scored together, but guiding scores two candidates for each.
    Path("few.py").write_text(
        "def few(completions, **_):\n    return [1 / (len(completions) < 5)] * len(completions)\n"
    )
    Path("study.yaml").write_text(
        f"model_name_or_path: frugalign.sandbox:model\ndataset_name: {data / 'prompts'}\nreward: few.py:few\n"
        "judges: frugalign.sandbox:gold\nseeds: [1]\nmax_new_tokens: 16\neval_prompts: 4\nuse_cpu: true\njobs: 2\noutput_dir: out\n"
        "methods:\n  base:\n  guided: {method: reward_guided, top_k: 2}\n"
    )
    assert main(["study", "study.yaml"]) == 2
    said = capsys.readouterr()
    assert "base, seed 1:" in said.out and "Missing: guided, seed 1, " in said.out and "division by zero" in said.out
    assert "The page is out/report.html." in said.out and "by zero" in Path("out/report.html").read_text()
    assert main(["study", "study.yaml", "--only", "base:1"]) == 0, "the selected cell is finished"
    assert main(["study", "study.yaml", "--only", "base:1", "--judges", "broken.py:reward", "--jobs", "1"]) == 2
    assert "base, seed 1" in (said := capsys.readouterr().out) and "by zero" in said
    page = Path("out/report.html").read_text()
    assert "frugalign study study.yaml --judges broken.py:reward --jobs 1 --only &#34;base:1&#34;" in page


@pytest.mark.slow
def test_the_page_has_what_is_done_and_names_what_is_not(data: Path, tmp_path: Path) -> None:
    methods = {
        "base": None,
        "best-of-3": {"method": "best_of_n", "n": 3},
        "guided": {"method": "reward_guided", "top_k": 3},
        "dpo": {},
    }
    given_options = options(data, tmp_path, methods=methods)
    for label, method, setting in (
        ("base", "base", {}),
        ("best-of-3", "best_of_n", {"n": 3}),
        ("guided", "reward_guided", {"top_k": 3}),
    ):
        cell = cell_of(Line(label, method, setting), 1, "test", given_options)
        cell.folder(tmp_path).mkdir(parents=True)
        (cell.folder(tmp_path) / "request.json").write_text(json.dumps(cell.request))
        run_cell(cell.folder(tmp_path), tmp_path / "start", tmp_path / "trainings")
    found = read_study(given_options)
    rows = {row.line.label: row for row in rows_of(found)}
    assert list(rows) == ["base", "best-of-3", "guided"]
    assert rows["base"].main.difference is None and rows["base"].win_rate is None
    best = rows["best-of-3"].main
    assert best.difference is not None and best.difference.mean == pytest.approx(
        best.value.mean - rows["base"].main.value.mean
    )
    assert best.p_holm is not None and best.p_value is not None and best.p_holm >= best.p_value
    page = write_study(found, "recipes/studies/this.yaml").read_text()
    assert "dpo, seed 1: not run yet" in page and "http://" not in page.replace("http://www.w3.org", "")
    for words in (
        "best-of-3",
        "Quality against distance",
        "frugalign study recipes/studies/this.yaml --only &#34;guided:1&#34;",
    ):
        assert words in page
    summary = json.loads((tmp_path / "study.json").read_text())
    assert [line["label"] for line in summary["lines"]] == ["base", "best-of-3", "guided"]
    assert summary["missing"] == [{"cell": "dpo, seed 1", "why": "not run yet"}]
    assert "| best-of-3 |" in (tmp_path / "study.md").read_text()
