"""`frugalign VERB` of a method: parse its options, train, and print the costs and the next command.

One module serves every method with a verb. What differs between them is in the method's entry.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from frugalign.base.specs import load_attribute
from frugalign.methods.method import Verb
from frugalign.methods.registry import METHODS

if TYPE_CHECKING:
    from frugalign.cli.parser import Command

VERBS: dict[str, Verb] = {method.verb.name: method.verb for method in METHODS.values() if method.verb is not None}


def command_of(name: str) -> Command:
    """The command line of a method's verb."""
    from frugalign.cli.parser import Command

    verb = VERBS[name]
    return Command(name, verb.description, load_attribute(verb.options), full=verb.config)


def run(name: str, argv: list[str]) -> int:
    """Train with the given flags and print the closing lines."""
    from frugalign.cli.parser import parse

    verb = VERBS[name]
    options = parse(command_of(name), argv)
    result: Any = load_attribute(verb.train)(options)
    lines = verb.closing(options, result)
    if lines and verb.writes_report:
        lines.insert(-1, _report(options.output_dir))
    for line in lines:
        print(line)
    return 0


def _report(folder: str) -> str:
    """Write the run's report and say where it is. A missing library does not fail the run, so it is only reported."""
    from frugalign.reports.render import MissingLibrary
    from frugalign.reports.run_page import write_report

    try:
        return f"Its report is {write_report(folder)}."
    except MissingLibrary as error:
        return str(error)
