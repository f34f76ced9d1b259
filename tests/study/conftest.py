"""Cells without their imports, and the data of real ones."""

from __future__ import annotations

import json
import subprocess
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any

import pytest
from tests.forked import Forked
from tests.study.small_cells import N_TEST

from frugalign.sandbox.cached import sample_pairs
from frugalign.sandbox.world import make_prompts
from frugalign.study import cell, launching


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
    """A study's cells are forked from this process. Without it each begins from nothing, as one test of `test_cell_processes.py` wants."""
    monkeypatch.setattr(launching, "subprocess", SimpleNamespace(**vars(subprocess) | {"Popen": ForkedCell}))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    parts = {
        "prompts/train": make_prompts("train", 80, 0),
        "prompts/test": make_prompts("test", N_TEST, 1),
        "pairs/train": sample_pairs("train", 60),
    }
    for name, rows in parts.items():
        path = folder / f"{name}.jsonl"
        path.parent.mkdir(exist_ok=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder
