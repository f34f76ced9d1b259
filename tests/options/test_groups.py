"""Which verbs have which shared options."""

from __future__ import annotations

from dataclasses import fields
from importlib import import_module

import pytest

from frugalign.cli import method
from frugalign.cli.main import VERBS
from frugalign.options import groups

LOADS_A_MODEL = ("proxy", "reward", "rerank", "psle", "generate", "chat", "evaluate")


def options_of(verb: str) -> type:
    command = method.command_of(verb) if verb in method.VERBS else import_module(f"frugalign.cli.{verb}").COMMAND
    options: type = command.options
    return options


@pytest.mark.parametrize("verb", LOADS_A_MODEL)
def test_a_verb_that_loads_a_model_has_every_model_option(verb: str) -> None:
    assert issubclass(options_of(verb), groups.Model)
    assert {"use_cpu", "revision", "dtype", "device_map", "load_in_4bit"} <= {
        each.name for each in fields(groups.Model)
    }


@pytest.mark.parametrize("verb", sorted(VERBS))
def test_every_option_has_a_help_that_is_a_sentence(verb: str) -> None:
    for each in fields(options_of(verb)):
        text = each.metadata["help"]
        assert text.strip() == text and text.endswith("."), each.name
