"""`frugalign study`: every method on one base, one table, what each costs."""

from __future__ import annotations

import argparse
import signal
import sys

from frugalign.cli.parser import Command, parse
from frugalign.study.options import StudyOptions

COMMAND = Command(
    "study",
    "Run every method that a YAML names on one base, prompts, reward and budget, several seeds each, and write one page. "
    "Completed cells are skipped, so the same command resumes a study.",
    StudyOptions,
    config_first=True,
)


def run(argv: list[str]) -> int:
    """Run what is missing, write the page, say what is still missing."""
    options: StudyOptions = parse(COMMAND, argv)
    recipe, flags = _recipe(argv)
    from frugalign.reports.render import check_libraries
    from frugalign.reports.study.page import write_study
    from frugalign.study.runner import run_study
    from frugalign.study.verdicts import judge_study, judges_of

    check_libraries()
    judges_of(options)  # a mistake there is said before hours of running
    # A runner that is told to stop takes its cells with it.
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        found = run_study(options)
    finally:
        signal.signal(signal.SIGTERM, before)
    try:
        judge_study(found)
    finally:  # the page is worth having without a judge's verdicts
        print(f"The page is {write_study(found, recipe, flags)}.")
    for outcome in found.missing:
        print(f"Missing: {outcome.cell.name}, {outcome.error}.")
    return 2 if found.wanted_missing else 0


def _recipe(argv: list[str]) -> tuple[str, list[str]]:
    """The study's file and the flags beside it, but for which cells are run."""
    named = argparse.ArgumentParser(add_help=False)
    named.add_argument("--config", default="STUDY.yaml")
    named.add_argument("--only", nargs="+", action="extend")
    first = [word for word in argv[:1] if not word.startswith("-")]
    known, flags = named.parse_known_args(argv[len(first) :])
    return (*first, known.config)[0], flags
