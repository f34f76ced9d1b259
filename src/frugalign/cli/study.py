"""`frugalign study`: compare methods on one base and one budget."""

from __future__ import annotations

import argparse
import signal
import sys

from frugalign.cli.parser import Command, parse
from frugalign.study.options import StudyOptions

COMMAND = Command(
    "study",
    "Compare methods on one base with the same prompts, reward and budget, several seeds each, and write one report. FILE.yaml holds the flags "
    "below as keys. Finished cells are skipped, so the same command resumes a study.",
    StudyOptions,
    config_first=True,
)


def run(argv: list[str]) -> int:
    """Run the missing cells, write the page, and name the cells that failed."""
    options: StudyOptions = parse(COMMAND, argv)
    recipe, flags = _recipe(argv)
    from frugalign.base.progress_display import showing
    from frugalign.reports.render import check_libraries
    from frugalign.reports.study.page import write_study
    from frugalign.study.runner import run_study
    from frugalign.study.verdicts import judge_study, judges_of

    check_libraries()
    judges_of(options)  # report a mistake there before hours of work
    # On SIGTERM the runner stops its cells too.
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        with showing():
            found = run_study(options)
    finally:
        signal.signal(signal.SIGTERM, before)
    try:
        judge_study(found)
    finally:  # the page is useful even without a judge's verdicts
        print(f"The page is {write_study(found, recipe, flags)}.")
    for outcome in found.missing:
        print(f"Missing: {outcome.cell.name}, {outcome.error}.")
    return 2 if found.wanted_missing else 0


def _recipe(argv: list[str]) -> tuple[str, list[str]]:
    """The study's file and the other flags, without --only."""
    named = argparse.ArgumentParser(add_help=False)
    named.add_argument("--config", default="STUDY.yaml")
    named.add_argument("--only", nargs="+", action="extend")
    first = [word for word in argv[:1] if not word.startswith("-")]
    known, flags = named.parse_known_args(argv[len(first) :])
    return (*first, known.config)[0], flags
