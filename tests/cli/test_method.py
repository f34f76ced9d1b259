"""The forms of a verb: what is given decides between a proxy by a reward and one by stored data, and a flag of the other says so."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from frugalign.base.errors import FrugalignError
from frugalign.cli.main import main
from frugalign.cli.method import FORMS, _command, form_of, run
from frugalign.cli.parser import parse

BY_REWARD, STORED = FORMS["proxy"]
ROWS: dict[str, list[dict[str, Any]]] = {
    "prompts": [{"prompt": "a"}],
    "pairs": [{"prompt": "a", "chosen": "b", "rejected": "c"}],
    "implicit": [{"chosen": "Q: a A: b", "rejected": "Q: a A: c"}],
    "demonstrations": [{"prompt": "a", "completion": "b"}],
    "labelled": [{"prompt": "a", "completion": "b", "label": True}],
}


@pytest.fixture(autouse=True)
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, rows in ROWS.items():
        Path(f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.mark.parametrize(
    ("words", "form"),
    [
        ("--dataset_name prompts.jsonl --reward r", BY_REWARD),
        ("--dataset_name prompts.jsonl", BY_REWARD),
        ("--dataset_name pairs.jsonl", STORED),
        ("--dataset_name=pairs.jsonl", STORED),
        ("--dataset_name pairs.jsonl --reward r", STORED),
        ("--reward r --dataset_name pairs.jsonl --beta 0.1", STORED),
        ("--dataset_name implicit.jsonl", STORED),
        ("--dataset_name demonstrations.jsonl", STORED),
        ("--dataset_name demonstrations.jsonl --reward r s", BY_REWARD),
        ("--dataset_name labelled.jsonl", STORED),
        ("--dataset_name labelled.jsonl --reward r", BY_REWARD),
        ("--dataset_name prompts.jsonl --principles harmless", STORED),
        ("--dataset_name prompts.jsonl --teacher larger", STORED),
        ("--dataset_name nowhere.jsonl --reward r", BY_REWARD),
        ("", BY_REWARD),
        ("--dataset_name", BY_REWARD),
    ],
)
def test_what_is_given_decides(words: str, form: Any) -> None:
    """On the command line, and in a file; the command line comes first."""
    argv = words.split()
    assert form_of("proxy", argv) is form
    flags: dict[str, Any] = {}
    for word in words.replace("=", " ").split():
        if word.startswith("--"):
            name = word.removeprefix("--")
            flags[name] = []
        else:
            flags[name].append(word)
    written = {name: values if len(values) > 1 else values[0] for name, values in flags.items() if values}
    Path("run.yaml").write_text(yaml.safe_dump(written))
    assert form_of("proxy", ["--config", "run.yaml"]) is form
    assert form_of("proxy", ["--config", "run.yaml", "--dataset_name", "pairs.jsonl"]) is STORED


def test_data_that_is_not_there_is_said_first(capsys: pytest.CaptureFixture[str]) -> None:
    """Without a reward nothing says which form is meant, so the reward is not what is missing."""
    assert main(["proxy", "--model_name_or_path", "m", "--dataset_name", "pears.jsonl"]) == 2
    said = capsys.readouterr().err
    assert "pears.jsonl" in said and "reward" not in said


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("--dataset_name pairs.jsonl --num_generations 4", "--num_generations is for prompts and a reward, and what is given is preference pairs, demonstrations, principles or a teacher (`frugalign proxy --help` lists the flags of both)."),
        ("--dataset_name prompts.jsonl --reward r --kl_weight=0.1", "--kl_weight is for preference pairs, demonstrations, principles or a teacher, and what is given is prompts and a reward"),
        ("--dataset_name prompts.jsonl --reward r --loss ipo", "--loss is for preference pairs"),
        ("--dataset_name pairs.jsonl --nonsense 4", "There is no flag --nonsense"),
        ("--dataset_name pairs.jsonl --kl_wieght 4", "There is no flag --kl_wieght; did you mean --kl_weight?"),
    ],
)  # fmt: skip
def test_a_flag_of_the_other_form_names_it(words: str, sentence: str) -> None:
    with pytest.raises(FrugalignError) as raised:
        parse(_command(form_of("proxy", words.split())), words.split())
    assert str(raised.value).startswith(sentence)


@pytest.mark.parametrize(
    ("content", "key", "form"),
    [
        ({"dataset_name": "pairs.jsonl", "num_generations": 4}, "num_generations", "prompts and a reward"),
        ({"dataset_name": "prompts.jsonl", "reward": "r", "sft_weight": 1}, "sft_weight", "preference pairs"),
    ],
)
def test_so_does_a_key_in_a_file(content: dict[str, Any], key: str, form: str) -> None:
    Path("run.yaml").write_text(yaml.safe_dump(content))
    argv = ["--config", "run.yaml"]
    with pytest.raises(FrugalignError, match=f"^In the config file run.yaml, {key} is for {form}"):
        parse(_command(form_of("proxy", argv)), argv)


@pytest.mark.parametrize("asked", ["--help", "--help_all"])
def test_help_lists_both_forms(asked: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("proxy", ["--dataset_name", "pairs.jsonl", asked]) == 0
    said = capsys.readouterr().out
    first, second = said.split(f"\nWith {STORED.when}:\n")
    assert first.startswith("usage: frugalign proxy") and second.lstrip().startswith("usage: frugalign proxy")
    assert "--num_generations" in first and "--num_generations" not in second
    assert "--kl_weight" in second and "--kl_weight" not in first
    assert ("--gradient_checkpointing" in first and "--gradient_checkpointing" in second) == (asked == "--help_all")
