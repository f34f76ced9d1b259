"""The folder of real models and data that trials read, which stays out of the repository."""

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
    """The folder, with `models` and `data` in it; ends the command where none is named."""
    if not are_named():
        sys.exit(f"{VARIABLE} names no trials folder.")
    return Path(os.environ[VARIABLE])
