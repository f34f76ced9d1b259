"""`frugalign VERB` of a method: parse its options, train, say what it cost and what comes next.

One module for every method that has a verb: what differs is in the method's entry.
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
    """Train as the flags say, and print the closing lines."""
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
    """Write the run's page, and say where it is or what it lacks: the run itself is complete."""
    from frugalign.reports.render import MissingLibrary
    from frugalign.reports.run_page import write_report

    try:
        return f"Its report is {write_report(folder)}."
    except MissingLibrary as error:
        return str(error)
