"""Cells as tasks on Ray: the same folders and numbers as in processes of this machine; a lost cell is run again."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.study.small_cells import options

from frugalign.base.errors import FrugalignError
from frugalign.cli.main import main
from frugalign.study import launching
from frugalign.study.plan import Line, cell_of

ON_RAY = ["--ray", "local", "--ray_cpus", "0.5"]


def test_where_a_cell_runs_changes_none_of_its_folders(tmp_path: Path) -> None:
    given = {"ray": "auto", "ray_cpus": 4, "ray_gpus": 0.5, "ray_memory_gib": 8}
    here, there = (
        cell_of(Line("dpo", "dpo", {}), 1, "test", options(tmp_path, tmp_path, methods={"dpo": {}}, **more))
        for more in ({}, given)
    )
    assert here.folder(tmp_path) == there.folder(tmp_path) and here.training(tmp_path) == there.training(tmp_path)


def test_a_machine_that_does_not_see_the_folder_says_so(tmp_path: Path) -> None:
    with pytest.raises(
        FrugalignError, match=r"does not see .*/nowhere: every machine of the cluster must see output_dir"
    ):
        launching.run_task(str(tmp_path), str(tmp_path / "nowhere"), [], {})


def test_the_status_of_a_cell_is_that_of_its_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that a signal has ended was lost, and Ray is to run it again."""
    (tmp_path / "request.json").write_text("{}")
    fake = tmp_path / "python"
    monkeypatch.setattr(sys, "executable", str(fake))
    monkeypatch.chdir(tmp_path)
    fake.write_text('#!/bin/sh\necho "$1 $2 $4 $MINE"\nexit 2\n')
    fake.chmod(0o755)
    assert launching.run_task(str(tmp_path), str(tmp_path), ["word"], {"MINE": "yes"}) == 2
    assert (tmp_path / "log.txt").read_text() == "-m frugalign.study.cell word yes\n"
    fake.write_text("#!/bin/sh\nkill -9 $$\n")
    with pytest.raises(launching.CellKilled) as killed:
        launching.run_task(str(tmp_path), str(tmp_path), [], {})
    assert killed.value.status == -9


def results(study: Path) -> dict[str, Any]:
    """By the cell's folder: what was measured, and what its training spent, without times and paths."""
    found = {path.parent.name: json.loads(path.read_text()) for path in study.glob("cells/*/cell.json")}
    for cell in found.values():
        del cell["metrics"]["decoding"]["seconds"], cell["metrics"]["settings"]["proxy"]
    return {
        name: [
            cell["request"],
            cell["metrics"],
            {key: cell["costs"][key] for key in ("generated_tokens", "reward_calls")},
        ]
        for name, cell in found.items()
    }


@pytest.mark.slow
def test_a_study_on_ray_is_that_of_one_process(
    ray_here: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One cell loses the process of Ray that runs it."""
    monkeypatch.chdir(tmp_path)
    Path("judge.py").write_text(
        "import os, signal, time\nfrom pathlib import Path\n"
        "def judge(completions, **_):\n"
        "    if not Path('lost').exists():\n"
        "        Path('lost').touch()\n"
        "        os.kill(os.getppid(), signal.SIGKILL)\n"
        "        time.sleep(60)\n"
        "    return [float(len(text)) for text in completions]\n"
    )
    Path("study.yaml").write_text(
        f"model_name_or_path: {options(data, tmp_path).model_name_or_path}\ndataset_name: {data / 'prompts'}\n"
        "reward: frugalign.sandbox:gold\njudges: judge.py:judge\nseeds: [1]\nmax_new_tokens: 16\neval_prompts: 4\nuse_cpu: true\n"
        "budget: {generated_tokens: 1500}\n"
        "methods:\n  base:\n  proxy: {num_generations: 4, num_iterations: 1}\n"
    )
    Path("lost").touch()
    assert main(["study", "study.yaml", "--output_dir", "here"]) == 0
    Path("lost").unlink()
    assert main(["study", "study.yaml", "--output_dir", "there", *ON_RAY]) == 0
    assert Path("lost").exists() and "2/2 " in capsys.readouterr().out
    assert results(Path("there")) == results(Path("here")) and len(results(Path("here"))) == 2
    assert {path.name for path in Path("there/trainings").iterdir()} == {
        path.name for path in Path("here/trainings").iterdir()
    }
    assert main(["study", "study.yaml", "--output_dir", "there", *ON_RAY]) == 0
    assert "2 of 2 cells are finished already." in capsys.readouterr().out
    page = Path("there/report.html").read_text()
    assert "--ray local" in page
