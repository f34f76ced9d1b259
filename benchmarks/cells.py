"""Cells of a comparison: one run of one method, setting and seed each, kept in a folder of its own and never run twice."""

from __future__ import annotations

import json
import multiprocessing
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

Cell = dict[str, Any]


def result_in(folder: Path) -> Cell:
    """The finished cell of a folder."""
    found: Cell = json.loads((folder / "cell.json").read_text())
    return found


def run_cells(cells: list[Cell], folder_of: Callable[[Cell], Path], run: Callable[[Cell], None], jobs: int) -> None:
    """Run what is not finished yet, `jobs` at a time."""
    left = [cell for cell in cells if not (folder_of(cell) / "cell.json").is_file()]
    print(f"{len(left)} of {len(cells)} cells to run", flush=True)
    with multiprocessing.get_context("spawn").Pool(jobs) as pool:
        for number, _ in enumerate(pool.imap_unordered(run, left), start=1):
            print(f"{number}/{len(left)} {time.strftime('%H:%M:%S')}", flush=True)
