"""Reading what runs left: JSON files that may be missing, and JSONL files that a crash may have cut short."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from frugalign.errors import FrugalignError


def read_json(path: Path) -> dict[str, Any]:
    """The object of a JSON file; empty where there is no such file.

    Raises:
        FrugalignError: for a file that is not JSON.
    """
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise FrugalignError(f"{path} is not valid JSON: {error}.") from error
    return content if isinstance(content, dict) else {}


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a JSONL file; one that a crash cut short is left out."""
    found: list[dict[str, Any]] = []
    for text in path.read_text(encoding="utf-8").split("\n") if path.is_file() else []:
        try:
            found.append(json.loads(text))
        except ValueError:
            continue
    return found
