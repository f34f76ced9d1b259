"""`frugalign VERB` of a method: parse its options, train, and print the costs and the next command.

One module serves every method with a verb. What differs between them is in the method's entry. A verb may have several forms, such as
a proxy by a reward and a proxy by stored data: what is given decides, so each form has only the flags that it uses.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from frugalign.base.errors import FrugalignError
from frugalign.base.parsing import read_yaml
from frugalign.base.specs import load_attribute
from frugalign.methods.method import Verb
from frugalign.methods.registry import METHODS

if TYPE_CHECKING:
    from frugalign.cli.parser import Command

FORMS: dict[str, list[Verb]] = {}
"""The forms of every verb. The first one is for what no other takes."""
for _method in METHODS.values():
    if _method.verb is not None:
        FORMS.setdefault(_method.verb.name, []).append(_method.verb)
VERBS: dict[str, Verb] = {name: forms[0] for name, forms in FORMS.items()}
_READ = ("dataset_name", "principles", "teacher", "config")
"""Options that decide between forms, beside the rewards."""


def command_of(name: str, form: int = 0) -> Command:
    """The command line of a form of a method's verb."""
    return _command(FORMS[name][form])


def _command(verb: Verb) -> Command:
    from frugalign.cli.parser import Command

    every = {
        id(form): Command(form.name, form.description, load_attribute(form.options), form.config, when=form.when)
        for form in FORMS[verb.name]
    }
    own = every.pop(id(verb))
    return replace(own, other_forms=tuple(every.values()))


def run(name: str, argv: list[str]) -> int:
    """Train with the given flags and print the closing lines."""
    from frugalign.cli.parser import help_of, parse

    forms, asked = FORMS[name], [word for word in argv if word in ("--help", "-h", "--help_all")]
    if asked and len(forms) > 1:
        for form in forms:
            print("" if form is forms[0] else f"\nWith {form.when}:\n\n", end="")
            print(help_of(_command(form), every="--help_all" in asked), end="")
        return 0
    verb = form_of(name, argv)
    options = parse(_command(verb), argv)
    result: Any = load_attribute(verb.train)(options)
    lines = verb.closing(options, result)
    if lines and verb.writes_report:
        lines.insert(-1, _report(options.output_dir))
    for line in lines:
        print(line)
    return 0


def form_of(name: str, argv: list[str]) -> Verb:
    """The form of a verb that the given flags and file ask for."""
    forms = FORMS[name]
    if len(forms) > 1:
        given = _given(argv)
        for form in forms[1:]:
            if form.takes is not None and load_attribute(form.takes)(given):
                return form
    return forms[0]


def _given(argv: list[str]) -> dict[str, Any]:
    """The options that decide, as they are given. Whatever is wrong with them is said where they are parsed."""
    import argparse

    parser = argparse.ArgumentParser(
        add_help=False, allow_abbrev=False, argument_default=argparse.SUPPRESS, exit_on_error=False
    )
    for name in _READ:
        parser.add_argument(f"--{name}")
    parser.add_argument("--reward", nargs="+")
    try:
        given = vars(parser.parse_known_args(argv)[0])
        content = read_yaml(given.pop("config"), "config file") if "config" in given else None
    except (argparse.ArgumentError, SystemExit, FrugalignError):
        return {}
    return (content if isinstance(content, dict) else {}) | given


def _report(folder: str) -> str:
    """Write the run's report and say where it is. A missing library does not fail the run, so it is only reported."""
    from frugalign.reports.render import MissingLibrary
    from frugalign.reports.run_page import write_report

    try:
        return f"Its report is {write_report(folder)}."
    except MissingLibrary as error:
        return str(error)
