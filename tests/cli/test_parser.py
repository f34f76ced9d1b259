"""Flags and config files of a small dataclass; `Heavy` stands for a config that takes seconds to import."""

from __future__ import annotations

import sys
import types
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest

from frugalign.base.errors import FrugalignError
from frugalign.cli.parser import Command, parse
from frugalign.methods.proxy_rlhf.options import ProxyOptions
from frugalign.options import groups
from frugalign.options.declare import REQUIRED, defaults, like, option
from frugalign.options.kinds import COUNT


@dataclass
class Light:
    model: str = field(metadata={"help": "The model."})
    reward: list[str] = field(default_factory=list, metadata={"help": "Rewards."})
    steps: int = field(default=5, metadata={"help": "Share of 100 % of the steps."})
    rate: float | None = field(default=None, metadata={"help": "Rate."})
    style: Literal["short", "long"] = field(default="short", metadata={"help": "Style."})
    sample: bool | None = field(default=None, metadata={"help": "Sample."})
    quiet: bool = field(default=False, metadata={"help": "Quiet."})
    report_to: str | list[str] = field(default="none", metadata={"help": "Trackers."})


@dataclass
class Heavy(Light):
    inherited: float = field(default=0.5, metadata={"help": "An inherited flag."})

    def __post_init__(self) -> None:
        if self.steps < 0:
            raise ValueError("steps must not be\nnegative")


@dataclass
class Positional:
    run: str = field(metadata={"help": "Folder.", "positional": True})
    depth: int = field(default=1, metadata={"help": "Depth."})


LIGHT = Command("light", "A verb.", Light)
HEAVY = Command("heavy", "A verb with a full config.", Light, full="frugalign_test_heavy:Heavy")
POSITIONAL = Command("positional", "A verb on a folder.", Positional)


@pytest.fixture(autouse=True)
def _heavy_module(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("frugalign_test_heavy")
    module.Heavy = Heavy  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "frugalign_test_heavy", module)


def config(tmp_path: Path, text: str) -> str:
    path = tmp_path / "c.yaml"
    path.write_text(text)
    return str(path)


def test_every_type_of_flag() -> None:
    words = "--model m --reward a b --reward c --steps 7 --rate 1e-3 --style long --no_sample --quiet --report_to none"
    assert parse(LIGHT, words.split()) == Light(
        model="m", reward=["a", "b", "c"], steps=7, rate=1e-3, style="long", sample=False, quiet=True
    )
    assert parse(LIGHT, ["--model=m", "--sample", "true", "--quiet", "false", "--report_to", "x", "y"]) == Light(
        model="m", sample=True, report_to=["x", "y"]
    )
    assert parse(LIGHT, ["--model", "m"]) == Light(model="m")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("", "--model is missing; `frugalign light --help` explains it."),
        (
            "--model m --step 3",
            "There is no flag --step; did you mean --steps? (`frugalign light --help` lists the flags).",
        ),
        ("--model m extra", "There is one argument too many, 'extra'"),
        ("--model m --steps x", "--steps: 'x' is not a whole number"),
        ("--model m --style tall", "--style: 'tall' is not one of short, long"),
        ("--model m --quiet maybe", "--quiet: 'maybe' is not true or false"),
        ("--model", "--model: expected one argument"),
        ("--model m --mod x", "There is no flag --mod"),  # no abbreviations
        ("--model m --config nowhere.yaml", "There is no config file nowhere.yaml."),
    ],
)
def test_mistakes_in_flags_are_one_sentence(words: str, sentence: str) -> None:
    with pytest.raises(FrugalignError) as caught:
        parse(LIGHT, words.split())
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("spelling", ["--config {}", "--config={}"])
def test_a_config_file_with_flags_over_it(tmp_path: Path, spelling: str) -> None:
    path = config(tmp_path, "model: m\nreward: [a, b]\nsteps: 3\nrate: 3e-4\nquiet: true\n")
    assert parse(LIGHT, [*spelling.format(path).split(), "--steps", "9", "--no_quiet"]) == Light(
        model="m", reward=["a", "b"], steps=9, rate=3e-4, quiet=False
    )


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("modl: m", "unknown key 'modl'; did you mean model?"),
        ("zzz: 1", "unknown key 'zzz'."),
        ("steps: many", "steps must be a whole number, not 'many'"),
        ("steps: true", "steps must be a whole number, not True"),
        ("model: 3", "model must be text, not 3"),
        ("style: tall", "style must be one of short, long, not 'tall'"),
        ("- a", "is not a mapping"),
        ("model: [", "line 1 is not valid YAML"),
        ("rate: 1", "--model is missing"),
    ],
)
def test_mistakes_in_a_config_file_are_one_sentence(tmp_path: Path, text: str, sentence: str) -> None:
    with pytest.raises(FrugalignError) as caught:
        parse(LIGHT, ["--config", config(tmp_path, text)])
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_full_config_takes_what_the_light_options_do_not_know(tmp_path: Path) -> None:
    assert parse(HEAVY, ["--model", "m"]) == Heavy(model="m")
    assert parse(HEAVY, ["--model", "m", "--inherited", "2", "--steps", "1"]) == Heavy(
        model="m", inherited=2.0, steps=1
    )
    assert parse(HEAVY, ["--config", config(tmp_path, "model: m\ninherited: 3")]) == Heavy(model="m", inherited=3.0)
    with pytest.raises(FrugalignError, match="no flag --inherite; did you mean --inherited"):
        parse(HEAVY, ["--model", "m", "--inherite", "2"])
    with pytest.raises(FrugalignError, match=r"^steps must not be negative\.$"):
        parse(HEAVY, ["--model", "m", "--steps", "-1"])


def printed(command: Command, flag: str, capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as stop:
        parse(command, ["--model", "m", flag])
    assert stop.value.code == 0
    return capsys.readouterr().out


def test_help_is_the_dataclass(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    text = printed(HEAVY, "--help", capsys)
    assert "--inherited" not in text and "--help_all" in text
    assert "Share of 100 % of the steps. (default: 5)" in text
    assert "The model. (required)" in text
    assert "--style {short,long}" in text
    everything = printed(HEAVY, "--help_all", capsys)
    assert "An inherited flag. (default: 0.5)" in everything
    assert everything.index("\nheavy:\n") < everything.index("--model") < everything.index("\ninherited:\n")


def test_the_help_has_a_section_per_group_and_the_verbs_own_last(capsys: pytest.CaptureFixture[str]) -> None:
    @dataclass
    @defaults(seed=0, model_name_or_path=REQUIRED)
    class Greet(groups.Seed, groups.Model):
        model: str = option("m", "The model.")
        zero: float = option(0.0, "A number.")
        output_dir: str = like(groups.OutputDir, "output_dir", "runs/greet")

    text = printed(Command("greet", "Say hello.", Greet), "--help", capsys)
    places = [
        text.index(word)
        for word in ("\nmodel:\n", "--revision", "\nrun:\n", "--seed", "--output_dir", "\ngreet:\n", "--zero")
    ]
    assert places == sorted(places)
    assert "Random seed. (default: 0)" in text and "A number. (default: 0.0)" in text
    assert "package.module:attribute." in text and text.count("(required)") == 1


def test_every_verb_holds_its_values_against_their_kinds() -> None:
    @dataclass
    class Greet:
        times: int = option(1, "How often.", COUNT)

    with pytest.raises(FrugalignError, match=r"^times is 0; it must be at least 1\.$"):
        parse(Command("greet", "Say hello.", Greet), ["--times", "0"])


@pytest.mark.parametrize("words", ["runs/a --depth 2", "--depth 2 runs/a", "--run runs/a --depth 2"])
def test_a_positional_may_stand_anywhere_or_have_its_name(words: str) -> None:
    assert parse(POSITIONAL, words.split()) == Positional("runs/a", 2)


def test_a_missing_positional_and_one_too_many(tmp_path: Path) -> None:
    with pytest.raises(FrugalignError, match="RUN is missing"):
        parse(POSITIONAL, [])
    with pytest.raises(FrugalignError, match="argument too many, 'b'"):
        parse(POSITIONAL, ["a", "b"])
    assert parse(POSITIONAL, ["--config", config(tmp_path, "run: x")]) == Positional("x")


def test_the_proxy_options_as_they_are() -> None:
    options = parse(
        Command("proxy", "", ProxyOptions),
        ["--model_name_or_path", "m", "--reward", "a", "--p_t", "1e-4", "--target_kl", "14", "--seed", "3"],
    )
    assert (options.p_t, options.target_kl, options.seed, options.reward) == (1e-4, 14.0, 3, ["a"])


def test_a_percent_sign_in_a_help_is_one(capsys: pytest.CaptureFixture[str]) -> None:
    """argparse formats the help of a flag, and a description only where it names the program."""
    from frugalign.cli.main import main

    for verb in ("proxy", "psle", "evaluate", "demo"):
        assert main([verb, "--help"]) == 0
        assert "%%" not in capsys.readouterr().out
