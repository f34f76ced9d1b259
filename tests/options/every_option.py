"""Every verb's flags, and a smallest right command line for each verb.

A verb of several forms is there once for each: `proxy`, `proxy/1`.
"""

from __future__ import annotations

from dataclasses import Field
from functools import cache
from importlib import import_module
from typing import Any, get_type_hints

from frugalign.base.specs import load_attribute
from frugalign.cli import main, method
from frugalign.cli.parser import Command, _fields

NEEDED: dict[str, dict[str, Any]] = {
    "evaluate": {"model_name_or_path": "m", "dataset_name": "d", "reward": ["r"]},
    "generate": {"model_name_or_path": "m", "prompt": "p"},
    "chat": {"model_name_or_path": "m"},
    "serve": {"model_name_or_path": "m"},
    "validate": {"dataset_name": "d"},
    "convert": {"dataset_name": "d", "out": "o.jsonl"},
    "export": {"trained_proxy": "p", "bundle": "o"},
    "report": {"run": "r"},
    "push": {"run": "r"},
    "lm-eval": {"model_name_or_path": "m", "tasks": ["t"]},
}


@cache
def command_of(verb: str) -> Command:
    name, _, form = verb.partition("/")
    if name in method.VERBS:
        return method.command_of(name, int(form or 0))
    found: Command = import_module(f"frugalign.cli.{name.replace('-', '_')}").COMMAND
    return found


@cache
def config_of(verb: str) -> Any:
    """The class that holds all of a verb's flags, the inherited ones too."""
    command = command_of(verb)
    return load_attribute(command.full) if command.full is not None else command.options


def fields_of(verb: str) -> list[Field[Any]]:
    return _fields(config_of(verb))


@cache
def hints_of(verb: str) -> dict[str, Any]:
    return get_type_hints(config_of(verb))


VERBS = [
    verb if number == 0 else f"{verb}/{number}"
    for verb in main.VERBS
    if verb != "env"
    for number in range(len(method.FORMS.get(verb, [verb])))
]
