"""The notebooks of the docs run from top to bottom, in one namespace, and hold nothing of the machine that wrote them."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from typing import Any

import pytest

NOTEBOOKS = sorted((Path(__file__).parents[1] / "docs" / "notebooks").glob("*.ipynb"))


def cells(path: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return found


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_it_is_stored_without_outputs_and_paths(path: Path) -> None:
    for cell in cells(path):
        assert cell["cell_type"] == "markdown" or (cell["outputs"] == [] and cell["execution_count"] is None)
        assert not re.search(r"(?<![\w.:/])/(home|root|tmp|Users|work)/", "".join(cell["source"]))


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_it_runs_within_a_minute(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A minute of a core. The proxy of the quickstart has learned something by then."""
    monkeypatch.chdir(tmp_path)
    began, names = time.process_time(), {"__name__": "__main__"}
    for number, cell in enumerate(cells(path)):
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), f"{path.name}, cell {number}", "exec"), names)
    assert time.process_time() - began < 60
    if path.stem == "quickstart":
        log: Any = names["log"]
        assert log[-1]["reward"] > log[0]["reward"] + 0.1
