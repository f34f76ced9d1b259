"""`frugalign validate`: every problem of every row of a data set, in one pass."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Literal

from frugalign.cli.parser import Command, parse
from frugalign.options import groups
from frugalign.options.declare import REQUIRED, like, option
from frugalign.options.kinds import COUNT_OR_ZERO


@dataclass
class ValidateOptions:
    """Options of `frugalign validate`."""

    dataset_name: str = like(groups.Data, "dataset_name", REQUIRED, positional=True)
    kind: Literal["prompt-only", "prompt-completion", "preference", "unpaired", "groups"] | None = option(
        None, "Data set type to check against. Default: inferred from the columns."
    )
    max_problems: int = option(100, "Print at most this many problems. All are counted.", COUNT_OR_ZERO)


COMMAND = Command(
    "validate",
    "Check every row of a data set and list each problem with file, row and reason. The exit status is 2 if there are any.",
    ValidateOptions,
)


def run(argv: list[str]) -> int:
    """Print the problems and return the exit status: 0 without problems, else 2."""
    options: ValidateOptions = parse(COMMAND, argv)
    from frugalign.base.progress_display import showing
    from frugalign.base.wording import pluralize
    from frugalign.data.validate import validate_files

    with showing():
        report = validate_files(options.dataset_name, options.kind)
    for problem in report.problems[: options.max_problems]:
        print(problem)
    if len(report.problems) > options.max_problems:
        print(f"… and {len(report.problems) - options.max_problems} more (--max_problems shows more)")
    for warning in report.warnings:
        print(f"Warning: {warning}")
    kinds = ", ".join(f"{kind} ({n} file{'s' if n > 1 else ''})" for kind, n in Counter(report.kinds.values()).items())
    bad = pluralize(len(report.problems), "problem") if report.problems else "no problem"
    print(f"{pluralize(report.n_rows, 'row')}, {kinds}: {bad}.")
    if not report.problems and (verbs := _readers(set(report.kinds.values()))):
        print(f"Read by: {', '.join(f'frugalign {verb}' for verb in verbs)}.")
    return 2 if report.problems else 0


def _readers(kinds: set[str]) -> list[str]:
    """The verbs that read data of one of these types."""
    from frugalign.cli.method import FORMS

    found = {name for name, forms in FORMS.items() for form in forms if kinds & set(form.reads)}
    return sorted(found | ({"evaluate"} if "prompt-only" in kinds else set()))
