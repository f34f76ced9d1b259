"""Whole runs that several tests look at."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.methods.psle.runs import command, make_prompt_files

from frugalign.cli.main import main

Finished = Callable[..., Path]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder of its own with prompts."""
    monkeypatch.chdir(tmp_path)
    make_prompt_files()


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """`finished(rounds=1)` is the folder of a whole run with these flags, made once. Only read it: to change it, take a copy."""
    made: dict[str, Path] = {}

    def run(**flags: Any) -> Path:
        key = repr(sorted(flags.items()))
        if key not in made:
            folder = tmp_path_factory.mktemp("finished")
            with pytest.MonkeyPatch.context() as patch:
                patch.chdir(folder)
                make_prompt_files()
                assert main(command(**flags)) == 0
            made[key] = folder / "run"
        return made[key]

    return run


@pytest.fixture
def copied(finished: Finished, here: None) -> Finished:
    """As `finished`, and a copy of the folder is `run` in the current one."""

    def copy(**flags: Any) -> Path:
        whole = finished(**flags)
        shutil.copytree(whole, "run")
        return whole

    return copy
