"""`frugalign study`: every method on one base, one table, what each costs."""

from __future__ import annotations

from frugalign.cli.parser import Command, parse
from frugalign.study.options import StudyOptions

COMMAND = Command(
    "study",
    "Run every method that a YAML names on one base, prompts, reward and budget, several seeds each, and write one page. "
    "Cells that are done are skipped, so the same command goes on with a study.",
    StudyOptions,
)


def run(argv: list[str]) -> int:
    """Run what is missing, write the page, say what is still missing."""
    # The study's file is its config: `frugalign study recipes/studies/X.yaml`.
    if argv and not argv[0].startswith("-"):
        argv = ["--config", *argv]
    options: StudyOptions = parse(COMMAND, argv)
    from frugalign.study.judging import judge_study, judges_of
    from frugalign.study.page import write_study
    from frugalign.study.running import run_study

    judges_of(options)  # a mistake there is said before hours of running
    found = run_study(options)
    judge_study(found)
    recipe = argv[argv.index("--config") + 1] if "--config" in argv else "STUDY.yaml"
    page = write_study(found, recipe)
    print(f"The page is {page}.")
    for outcome in found.missing:
        print(f"Missing: {outcome.cell.name}, {outcome.error}.")
    return 2 if found.missing and not options.only else 0
