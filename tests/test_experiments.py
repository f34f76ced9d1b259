"""Scripts explain themselves, and studies have a smallest setting."""

import importlib
import sys
from pathlib import Path

import pytest
from experiments.smoke import STUDIES, smallest

from frugalign.study.checks import check_lines
from frugalign.study.plan import lines_of, swept

SCRIPTS = sorted(path.stem for path in STUDIES.parent.glob("*.py") if "def main(" in path.read_text("utf-8"))


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_explains_itself(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    script = importlib.import_module(f"experiments.{name}")
    monkeypatch.setattr(sys, "argv", [name, "--help"])
    with pytest.raises(SystemExit) as stopped:
        script.main()
    said = capsys.readouterr().out
    assert stopped.value.code == 0 and (script.__doc__ or "?").splitlines()[0] in said
    assert f"python -m experiments.{name}" in said


def test_every_measuring_script_has_a_smallest_setting() -> None:
    """A script that writes a summary can run without writing one."""
    measuring = [name for name in SCRIPTS if "write_summary(" in (STUDIES.parent / f"{name}.py").read_text("utf-8")]
    assert len(measuring) >= 8
    for name in set(measuring) - {"summary"}:
        assert "script_options(" in (STUDIES.parent / f"{name}.py").read_text("utf-8"), name


@pytest.mark.parametrize("study", sorted(STUDIES.glob("*.yaml")), ids=lambda path: path.stem)
def test_a_study_at_its_smallest_keeps_every_line(study: Path) -> None:
    options = smallest(study)
    lines = lines_of(options)
    assert len(options.seeds) == 1 and all(len(swept(line)) <= 2 for line in lines)
    assert options.output_dir.startswith("runs/smoke/")
    check_lines(lines, options.budget)
