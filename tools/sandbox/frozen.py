"""The frozen files of the sandbox: hashes of weights, prompts and grammar.

Every result of the project was measured on exactly these files. After a change, rebuild them (`python -m
tools.sandbox.build`) and measure every result again.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import frugalign.sandbox

HERE = Path(frugalign.sandbox.__file__).parent
FROZEN = HERE / "FROZEN.json"
GRAMMAR: tuple[str, ...] = ("world.py", "replies.py", "principles.py", "judging.py")
FOLDERS: tuple[str, ...] = ("model", "reward_model", "prompts")


def current_hashes(folder: Path = HERE) -> dict[str, str]:
    """SHA-256 of every frozen file, by its path inside this package."""
    files = [HERE / name for name in GRAMMAR]
    files += sorted(path for part in FOLDERS for path in (folder / part).iterdir() if path.is_file())
    return {
        str(path.relative_to(HERE if path.parent == HERE else folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
    }


def write_hashes(folder: Path = HERE) -> None:
    """Write FROZEN.json beside the files."""
    (folder / "FROZEN.json").write_text(json.dumps(current_hashes(folder), indent=2) + "\n")


def read_hashes() -> dict[str, str]:
    """The shipped FROZEN.json."""
    hashes: dict[str, str] = json.loads(FROZEN.read_text())
    return hashes
