"""Which verbs have which shared options."""

from __future__ import annotations

from dataclasses import MISSING, fields, replace
from pathlib import Path

import pytest
from tests.options.every_option import VERBS, command_of

from frugalign.base.errors import FrugalignError
from frugalign.cli.parser import parse
from frugalign.options import groups

LOADS_A_MODEL = ("proxy", "proxy/1", "reward", "rerank", "psle", "generate", "chat", "evaluate")


def options_of(verb: str) -> type:
    return command_of(verb).options


@pytest.mark.parametrize("verb", LOADS_A_MODEL)
def test_a_verb_that_loads_a_model_has_every_model_option(verb: str) -> None:
    assert issubclass(options_of(verb), groups.Model)
    assert {"use_cpu", "revision", "dtype", "device_map", "load_in_4bit"} <= {
        each.name for each in fields(groups.Model)
    }


@pytest.mark.parametrize("verb", [*LOADS_A_MODEL, "study"])
def test_a_verb_that_renders_prompts_takes_arguments_of_the_template(verb: str, tmp_path: Path) -> None:
    """As JSON on the command line, and as a mapping in YAML."""
    command = command_of(verb)
    light = replace(command, full=None, config_first=False)
    needed = [
        word
        for each in fields(command.options)
        if each.default is MISSING and each.default_factory is MISSING
        for word in (f"--{each.name}", "x")
    ]
    file = tmp_path / "options.yaml"
    file.write_text("chat_template_kwargs:\n  enable_thinking: false\n")
    for given in (["--chat_template_kwargs", '{"enable_thinking": false}'], ["--config", str(file)]):
        assert parse(light, [*needed, *given]).chat_template_kwargs == {"enable_thinking": False}
    with pytest.raises(FrugalignError, match="is not a mapping"):
        parse(light, [*needed, "--chat_template_kwargs", "enable_thinking=false"])


@pytest.mark.parametrize("verb", sorted(VERBS))
def test_every_option_has_a_help_that_is_a_sentence(verb: str) -> None:
    for each in fields(options_of(verb)):
        text = each.metadata["help"]
        assert text.strip() == text and text.endswith("."), each.name
