"""A bounded part of the fuzzer, the same cases every time. `make fuzz` goes on for an hour with others."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from tests.fuzz.classes import CLASSES, prepare

_CASES = {
    "data files": 40,
    "odd data": 60,
    "YAML and flags": 60,
    "artefacts": 40,
    "run folders": 6,
    "plans": 30,
    "principles": 120,
    "judge answers": 80,
}


@pytest.fixture(scope="module", autouse=True)
def _prepared() -> Iterator[None]:
    logging.disable(logging.CRITICAL)
    prepare()
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.slow
@pytest.mark.parametrize("name", CLASSES)
def test_no_traceback_no_hang_no_silent_change(name: str) -> None:
    make, check = CLASSES[name]

    @settings(
        max_examples=_CASES[name],
        database=None,
        deadline=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )
    @given(make())
    def run(case: Any) -> None:
        check(case)

    run()
