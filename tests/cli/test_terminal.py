"""No verb sends a control character of a stranger's text to the terminal: it is written out."""

from __future__ import annotations

import io
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from frugalign.cli.main import main

ATTACK = "\x1b]0;owned\x07\x1b[2Jred\x9b31m\r\u202e"
SEEN = "\\x1b]0;owned\\x07\\x1b[2Jred\\x9b31m\\x0d\\u202e"


def printed(argv: list[str], capsys: pytest.CaptureFixture[str], status: int) -> str:
    """Everything that a command prints, which steers no terminal."""
    assert main(argv) == status
    found = capsys.readouterr()
    text = found.out + found.err
    assert not set(text) & set("\x1b\x07\x9b\r\u202e")
    return text


@pytest.fixture
def _answering(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that answers with the attack, in pieces."""
    import frugalign.policies.answer as answers
    import frugalign.policies.loading as policies

    def answer(*_: Any, on_text: Any = None, **__: Any) -> Any:
        for piece in ATTACK if on_text else ():
            on_text(piece)
        return SimpleNamespace(text=ATTACK, trace=[])

    tokenizer = SimpleNamespace(chat_template=None)
    monkeypatch.setattr(policies, "load", lambda spec: SimpleNamespace(base=SimpleNamespace(tokenizer=tokenizer)))
    monkeypatch.setattr(answers, "answer", answer)


@pytest.mark.usefixtures("_answering")
def test_a_model_s_answer(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert printed(["generate", "--model_name_or_path", "m", "--prompt", "p"], capsys, 0) == f"{SEEN}\n"
    monkeypatch.setattr("sys.stdin", io.StringIO("hello\n"))
    assert SEEN in printed(["chat", "--model_name_or_path", "m"], capsys, 0)


def test_names_of_files_columns_and_flags(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "\x1b[2J.jsonl"
    path.write_text(json.dumps({ATTACK: "x"}) + "\n")
    assert "control characters" in printed(["validate", str(path)], capsys, 2)
    folder = tmp_path / "folder"
    folder.mkdir()
    path.rename(folder / path.name)
    assert "\\x1b[2J" in printed(["validate", str(folder)], capsys, 2)
    (tmp_path / "a.jsonl").write_text(json.dumps({ATTACK: "x"}) + "\n")
    assert "\\x1b" in printed(["validate", str(tmp_path / "a.jsonl")], capsys, 2)
    assert SEEN in printed(["validate", "d", f"--{ATTACK}"], capsys, 2)
    assert "\\x1b]0" in printed([ATTACK], capsys, 2)


def test_a_key_and_a_value_of_a_config_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for key, value in (("\x1b[2J", "x"), ("seed", "\x1b[2J")):
        (tmp_path / "c.yaml").write_text(json.dumps({key: value}))
        assert "\\x1b[2J" in printed(["proxy", "--config", str(tmp_path / "c.yaml")], capsys, 2)


def test_the_table_of_an_evaluation(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    mean = {"mean": 0.25, "ci_low": 0.125, "ci_high": 0.5, "n": 40}
    monkeypatch.setattr("frugalign.evaluation.evaluate", lambda *_, **__: {"rewards": {"\x1b[2J[red]": mean}})
    words = "evaluate --model_name_or_path m --dataset_name d --reward a:b --output_dir o"
    assert "rewards.\\x1b[2J[red]" in printed(words.split(), capsys, 0)
