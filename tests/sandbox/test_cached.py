"""Prompts and pairs that the sandbox writes on first use."""

import json
from pathlib import Path

import pytest

from frugalign import sandbox
from frugalign.sandbox.cached import PROMPTS


def _prompts(folder: str, split: str) -> set[str]:
    return {json.loads(line)["prompt"] for line in (Path(folder) / f"{split}.jsonl").read_text("utf-8").splitlines()}


def test_prompts_of_a_study_are_no_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts of their sizes, disjoint from each other; none of the shipped test prompts."""
    monkeypatch.setenv("FRUGALIGN_CACHE", str(tmp_path))
    folder = sandbox.study_prompts()
    parts = {name: _prompts(folder, name) for name in PROMPTS}
    assert {name: len(part) for name, part in parts.items()} == {name: size for name, (_, size, _) in PROMPTS.items()}
    seen = _prompts(sandbox.prompts, "test")
    for part in parts.values():
        assert not part & seen
        seen |= part


def test_what_is_written_is_not_written_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FRUGALIGN_CACHE", str(tmp_path))
    first = {path: path.stat().st_mtime_ns for path in Path(sandbox.study_prompts()).iterdir()}
    again = Path(sandbox.study_prompts())
    assert {path: path.stat().st_mtime_ns for path in again.iterdir()} == first


def test_a_missing_part_is_the_same_when_it_is_written_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FRUGALIGN_CACHE", str(tmp_path))
    part = Path(sandbox.study_prompts()) / "test.jsonl"
    text = part.read_text("utf-8")
    part.unlink()
    sandbox.study_prompts()
    assert part.read_text("utf-8") == text
