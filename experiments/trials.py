"""The folder of models and data that some experiments read. It is not part of the repository."""

from __future__ import annotations

import os
import sys
from pathlib import Path

VARIABLE = "FRUGALIGN_TRIALS"
NAMED = f"{VARIABLE}=folder"
"""How a command that needs the folder names it."""


def are_named() -> bool:
    """Whether the environment names a trials folder."""
    return VARIABLE in os.environ


def trials() -> Path:
    """The trials folder, which has `models` and `data`. Without one the process exits with a message."""
    if not are_named():
        sys.exit(f"{VARIABLE} names no trials folder.")
    return Path(os.environ[VARIABLE])


def model_folder(name: str) -> str:
    """Path of one of the folder's models."""
    return str(trials() / "models" / name)
