"""`make bench`: decoding speed, the cost ladder, and the objectives; one after the other, since they would disturb each other.

    FRUGALIGN_TRIALS=folder python -m benchmarks.run [speed ladder objectives]

Parts that need the trials folder are named and left out where FRUGALIGN_TRIALS is unset. Results are in benchmarks/results; the page about
them is docs/results.md. The longer studies have commands of their own: benchmarks.sandbox, benchmarks.stories_proxy,
benchmarks.frontier, benchmarks.chat_safety.
"""

from __future__ import annotations

import argparse
import subprocess
import sys

from benchmarks.trials import are_named

PARTS = {"speed": False, "ladder": False, "objectives": True}
"""Part: whether it cannot do without the trials folder."""


def main() -> None:
    """Run the parts; the first that fails ends it with its status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", choices=[[], *PARTS], default=[])
    for part in parser.parse_args().parts or PARTS:
        if PARTS[part] and not are_named():
            print(f"{part} is left out: FRUGALIGN_TRIALS names no trials folder.")
            continue
        print(f"== {part}", flush=True)
        status = subprocess.run([sys.executable, "-m", f"benchmarks.{part}"], check=False).returncode
        if status:
            sys.exit(status)


if __name__ == "__main__":
    main()
