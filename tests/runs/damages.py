"""What can happen to a file: `DAMAGES` maps a name to a function that damages the file at a path."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any


def _rewrite(change: Callable[[Any], Any]) -> Callable[[Path], None]:
    """Change the JSON value of a file, or of each of its lines. Other files get the changed text of `{"a": 1}`."""

    def damage(path: Path) -> None:
        text = path.read_text(errors="replace")
        lines = text.strip().split("\n") if path.suffix == ".jsonl" else [text]
        try:
            values = [json.loads(line) for line in lines]
        except ValueError:
            values = [{"a": 1}]
        path.write_text("\n".join(json.dumps(change(value)) for value in values) + "\n")

    return damage


def _leaves(change: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def apply(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: apply(each) for name, each in value.items()}
        return [apply(each) for each in value] if isinstance(value, list) else change(value)

    return apply


def _renamed(value: Any) -> Any:
    return {f"{name}_": each for name, each in value.items()} if isinstance(value, dict) else value


def _shallow(value: Any) -> Any:
    return dict.fromkeys(value, 7) if isinstance(value, dict) else value


def _halved(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def _folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


DAMAGES: dict[str, Callable[[Path], None]] = {
    "missing": lambda path: path.unlink(),
    "empty": lambda path: path.write_bytes(b""),
    "halved": _halved,
    "binary": lambda path: path.write_bytes(bytes(range(256)) * 4),
    "a folder": _folder,
    "a list": lambda path: path.write_text("[1, 2]\n"),
    "a text": lambda path: path.write_text('"text"\n'),
    "null": lambda path: path.write_text("null\n"),
    "nested deeply": lambda path: path.write_text('{"a":' * 5000 + "1" + "}" * 5000),
    "NaN": _rewrite(_leaves(lambda value: float("nan") if isinstance(value, (int, float)) else value)),
    "numbers as text": _rewrite(_leaves(lambda value: str(value) if isinstance(value, (int, float)) else value)),
    "all null": _rewrite(_leaves(lambda value: None)),
    "huge numbers": _rewrite(_leaves(lambda value: 10**400 if isinstance(value, (int, float)) else value)),
    "other keys": _rewrite(_renamed),
    "numbers for everything": _rewrite(_shallow),
}
