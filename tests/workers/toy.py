"""Not a test: workers that need no model, so that they start at once."""

from __future__ import annotations

import os
import time
from pathlib import Path

from frugalign.base.errors import FrugalignError
from frugalign.workers.record import Record


class Toy:
    """Adds what is shared to a piece, after a pause. `dies_once`: a file; without it a piece with `dies` kills the process and makes it."""

    def __init__(self, about: Record) -> None:
        self._about, self._shared = about.values, 0

    def share(self, record: Record) -> None:
        self._shared = record.values["more"]

    def answer(self, piece: Record) -> Record:
        values = piece.values
        time.sleep(values.get("pause", 0.0))
        if values.get("dies"):
            marker = Path(self._about["dies_once"])
            if not marker.exists():
                marker.touch()
                os._exit(9)
        if values.get("always_dies"):
            os._exit(9)
        if values.get("raises"):
            raise FrugalignError(f"piece {values['n']} is wrong")
        return Record({"n": values["n"] + self._shared, "spent": 1})


def refuses(about: Record) -> Toy:
    raise FileNotFoundError("no model here")
