"""`frugalign report RUN`: the run's page."""

from __future__ import annotations

from dataclasses import dataclass

from frugalign.cli.parser import Command, parse
from frugalign.options.declare import REQUIRED, option
from frugalign.options.kinds import PATH


@dataclass
class ReportOptions:
    """Options of `frugalign report`."""

    run: str = option(REQUIRED, "The folder of a training or an evaluation.", PATH, positional=True)


COMMAND = Command("report", "Write report.html, with curves, quality and cost, into a run folder.", ReportOptions)


def run(argv: list[str]) -> int:
    """Write the page and say where it is."""
    options: ReportOptions = parse(COMMAND, argv)
    from frugalign.reports.run_page import write_report

    print(f"Written: {write_report(options.run)}")
    return 0
