"""Cells without their imports."""

from __future__ import annotations

import subprocess
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any

import pytest
from tests.forked import Forked

from frugalign.study import cell, runner


class ForkedCell(Forked):
    """Stands for `subprocess.Popen` where a study starts a cell."""

    def __init__(self, command: list[str], *, stdout: IO[bytes], env: dict[str, str], **_: Any) -> None:
        module, *words = command[2:]
        assert module == "frugalign.study.cell"
        super().__init__(partial(cell.main, *words), Path(stdout.name), env)

    def __class_getitem__(cls, _: Any) -> type:
        return cls


@pytest.fixture
def forked_cells(monkeypatch: pytest.MonkeyPatch) -> None:
    """A study's cells are forked from this process. Without it each begins from nothing, as one test of `test_cell.py` wants."""
    monkeypatch.setattr(runner, "subprocess", SimpleNamespace(**vars(subprocess) | {"Popen": ForkedCell}))
