"""Every problem of every row, in one pass. The rows are read as a training reads them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from frugalign.base.errors import FrugalignError
from frugalign.base.wording import pluralize
from frugalign.data.load_files import all_files, load_files
from frugalign.data.rows import Problem, printable
from frugalign.data.standard import KINDS


@dataclass(frozen=True)
class ValidationReport:
    """What `validate_files` found. `kinds`: the dataset type of each file. `warnings`: columns that nothing reads, and
    the like."""

    n_rows: int
    problems: list[Problem]
    kinds: dict[str, str]
    warnings: list[str] = field(default_factory=list)

    def __bool__(self) -> bool:
        """Whether every row can be used."""
        return not self.problems


def validate_files(name: str, kind: str | None = None) -> ValidationReport:
    """Load every split of a data set, and report the problems of all rows.

    Args:
        name: as `load_prompts` takes it.
        kind: `prompt-only`, `prompt-completion`, `preference` or `unpaired-preference`; default: detected from each
            file's columns.

    Raises:
        FrugalignError: the data or the kind does not exist.
    """
    kind = "unpaired-preference" if kind == "unpaired" else kind
    if kind is not None and kind not in KINDS:
        raise FrugalignError(f"{kind!r} is not a dataset type; choose from {', '.join(KINDS)}.")
    files = all_files(load_files(name, kind))
    return ValidationReport(
        sum(each.n_rows for each in files),
        [problem for each in files for problem in each.problems],
        {each.file: each.kind for each in files},
        [warning for each in files for warning in each.warnings],
    )


def raise_first_problem(problems: Sequence[Problem], name: str) -> None:
    """Raise for the first problem and say how many more there are. Do nothing without problems."""
    if not problems:
        return
    more = len(problems) - 1
    rest = f" and {pluralize(more, 'more problem')}" if more else ""
    raise FrugalignError(
        f"{problems[0]}{rest} (`frugalign validate {printable(name)}` lists {'all' if more else 'it'})."
    )
