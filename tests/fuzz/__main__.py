"""`python -m tests.fuzz`: fuzz for as long as asked, and print how many cases each class had.

Each fault is printed once, with its case. The exit status is the number of classes with faults.
"""

from __future__ import annotations

import argparse
import logging
import random
import sys
import time
import traceback
import warnings
from typing import Any

from hypothesis import HealthCheck, Phase, given, seed, settings
from tests.fuzz.classes import CLASSES, prepare

_ROUND = 200
_MANY = {"judge answers": 5, "principles": 5, "plans": 2, "YAML and flags": 2}
"""Rounds of a class in a turn, where its cases are fast."""


def fuzz(name: str, start: int, examples: int) -> tuple[int, str | None]:
    """How many cases were tried, and the first fault with its traceback, if there is one."""
    make, check = CLASSES[name]
    n_cases = 0

    @seed(start)
    @settings(
        max_examples=examples,
        database=None,
        deadline=None,
        # A fault is printed as it was found: shrinking one slow case would take the time of thousands.
        phases=[Phase.generate],
        report_multiple_bugs=False,
        suppress_health_check=list(HealthCheck),
    )
    @given(make())
    def run(case: Any) -> None:
        nonlocal n_cases
        n_cases += 1
        check(case)

    try:
        run()
    except Exception:
        return n_cases, traceback.format_exc()
    return n_cases, None


def main() -> int:
    """Fuzz the classes in turns."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=random.randrange(2**32))
    parser.add_argument("--only", nargs="+", choices=sorted(CLASSES), default=list(CLASSES))
    args = parser.parse_args()
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    prepare()
    counts, faults = dict.fromkeys(args.only, 0), dict[str, dict[str, str]]()
    end, turn = time.monotonic() + 60 * args.minutes, 0
    while time.monotonic() < end:
        for name in args.only:
            for _ in range(_MANY.get(name, 1)):
                turn += 1
                n_cases, fault = fuzz(name, args.seed + turn, _ROUND)
                counts[name] += n_cases
                if fault is not None:
                    last = fault.strip().splitlines()
                    key = next((line for line in reversed(last) if "Error" in line or "Hang" in line), last[-1])[:80]
                    if key not in faults.setdefault(name, {}):
                        faults[name][key] = fault
                        print(f"\n--- a fault in {name}, seed {args.seed + turn}\n{fault}", flush=True)
        print(f"{sum(counts.values()):,} cases: {counts}", file=sys.stderr, flush=True)
    for name, count in counts.items():
        print(f"{name:<16} {count:>9,} cases {len(faults.get(name, {})):>4} faults")
    print(f"{'together':<16} {sum(counts.values()):>9,} cases, from seed {args.seed}")
    return len(faults)


if __name__ == "__main__":
    sys.exit(main())
