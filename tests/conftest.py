"""What every run of the tests shares."""

from __future__ import annotations

import gc


def pytest_collection_finish() -> None:
    """Leave what was imported out of the garbage collector: the trainer collects often, half a second each time."""
    gc.collect()
    gc.freeze()
