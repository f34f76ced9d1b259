"""The folder of models and data that some experiments read. It is not part of the repository."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path

VARIABLE = "FRUGALIGN_TRIALS"
NAMED = f"{VARIABLE}=folder"
"""How a command that needs the folder names it."""
MODELS_VARIABLE = "FRUGALIGN_MODELS"
"""Names a folder of real models: `smollm2-135m`, the instruct model, and `minilm`, a sentence encoder."""


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


def instruct_model() -> str:
    """Path of SmolLM2-135M-Instruct in the folder of real models. Without one the process exits with a message."""
    if MODELS_VARIABLE not in os.environ:
        sys.exit(f"{MODELS_VARIABLE} names no folder of real models.")
    return str(Path(os.environ[MODELS_VARIABLE]) / "smollm2-135m")


def write_by_command(doc: str | None, write: Callable[[Path], None]) -> None:
    """The command line of a task: `write` its prompts into the folder that is named. `doc`: the help."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="OUTPUT_FOLDER")
    write(parser.parse_args().folder)
