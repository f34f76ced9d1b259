"""`frugalign proxy`: a whole run through the front door, and every mistake as one sentence with exit 2."""

from __future__ import annotations

import errno
import json
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from frugalign.cli.main import main

ORDERS = ["I seek a draught to cure a fever.", "A poison, keeper.", "Good day. A balm for my horse.", "Curse him!"]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A folder to stand in, with prompts and rewards."""
    monkeypatch.chdir(tmp_path)
    write_prompts("prompts.jsonl", [{"prompt": order} for order in ORDERS * 3])
    Path("my.py").write_text(
        "def short(completions, **_):\n    return [-len(text) / 10 for text in completions]\n\n"
        "def bad(completions, **_):\n    return [float('nan')] * len(completions)\n\n"
        "def angry(completions, **_):\n    raise KeyError('label')\n\n"
        "def few(completions, **_):\n    return [1.0]\n"
    )
    yield


def write_prompts(name: str, rows: list[dict[str, Any]]) -> None:
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows))


def command(**flags: Any) -> list[str]:
    given = {
        "model_name_or_path": "frugalign.sandbox:model",
        "dataset_name": "prompts.jsonl",
        "reward": "my.py:short",
        "output_dir": "run",
        "max_steps": 4,
        "num_iterations": 1,
        "max_new_tokens": 6,
        "num_generations": 4,
        "per_device_train_batch_size": 8,
        "p_t": 0.001,
        "logging_steps": 2,
        "use_cpu": "true",
    } | flags
    return [
        "proxy",
        *(word for name, value in given.items() if value is not None for word in (f"--{name}", str(value))),
    ]


def test_a_run_leaves_its_folder_and_says_what_comes_next(capsys: pytest.CaptureFixture[str]) -> None:
    """Artefact, card, config, metrics, costs and checkpoint; the next command names the same model, data and reward."""
    assert main(command(eval_steps=2, save_steps=2)) == 0
    said = capsys.readouterr().out
    assert "% of its base" in said and "is in run." in said
    expected = (
        "frugalign evaluate --model_name_or_path frugalign.sandbox:model --proxy run --dataset_name prompts.jsonl"
    )
    assert f"{expected} --reward my.py:short --output_dir run/evaluation" in said
    names = {path.name for path in Path("run").iterdir()}
    assert names >= {
        "model.safetensors", "config.json", "README.md", "config.yaml", "metrics.jsonl", "costs.json", "checkpoint-4",
    }  # fmt: skip
    assert not any(name.startswith(".") for name in names)
    card = Path("run/README.md").read_text()
    assert "2403.04283" in card and "frugalign.sandbox:model" in card and "Trainable parameters" in card
    settings = yaml.safe_load(Path("run/config.yaml").read_text())
    assert (settings["max_steps"], settings["p_t"], settings["reward"]) == (4, 0.001, ["my.py:short"])
    lines = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    assert any("eval_reward" in line for line in lines) and any("reward" in line for line in lines)
    config = json.loads(Path("run/config.json").read_text())
    assert config["base"]["name"] == "frugalign.sandbox:model" and config["trained_on"]["held_out_fraction"] == 0.1
    assert stat.S_IMODE(Path("run/config.yaml").stat().st_mode) & 0o444


def test_the_config_that_a_run_leaves_runs_again_and_goes_on(capsys: pytest.CaptureFixture[str]) -> None:
    """`--config run/config.yaml` in another folder gives the same weights; with `resume_from_checkpoint: true` two more rounds."""
    assert main(command(save_steps=2)) == 0
    assert main(["proxy", "--config", "run/config.yaml", "--use_cpu", "--output_dir", "again"]) == 0
    assert Path("again/model.safetensors").read_bytes() == Path("run/model.safetensors").read_bytes()
    settings = yaml.safe_load(Path("run/config.yaml").read_text()) | {"resume_from_checkpoint": True, "max_steps": 8}
    Path("more.yaml").write_text(yaml.safe_dump(settings | {"use_cpu": True}))
    assert main(["proxy", "--config", "more.yaml"]) == 0
    steps = [json.loads(line)["step"] for line in Path("run/metrics.jsonl").read_text().splitlines() if "beta" in line]
    assert steps == [2, 4, 6, 8]
    assert json.loads(Path("run/costs.json").read_text())["optimizer_steps"] == 8
    capsys.readouterr()


def refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one sentence of a command that ends with 2."""
    capsys.readouterr()
    assert main(words) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("frugalign: ")]
    assert len(lines) == 1 and lines[0].endswith(".")
    return lines[0]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"model_name_or_path": None}, ["--model_name_or_path is missing"]),
        ({"dataset_name": None}, ["--dataset_name is missing"]),
        ({"reward": None}, ["--reward is missing"]),
        ({"reward": "nowhere.py:short"}, ["nowhere.py"]),
        ({"reward": "my.py:long"}, ["my.py", "'long'"]),
        ({"reward": "./no/such/model"}, ["./no/such/model"]),
        ({"model_name_or_path": "./nothing"}, ["./nothing"]),
        ({"dataset_name": "absent.jsonl"}, ["absent.jsonl"]),
        ({"reward": "my.py:bad"}, ["'bad'", "NaN", "batch 0", "row 0"]),
        ({"reward": "my.py:angry"}, ["'angry'", "KeyError", "batch 0", "row 0"]),
        ({"reward": "my.py:few"}, ["'few'", "1 values for 8 completions", "batch 0"]),
        ({"reward_weights": "1 2"}, ["reward_weights"]),
        ({"max_new_tokens": 4096}, ["context", "max_new_tokens"]),
        ({"temperature": 0}, ["temperature"]),
        ({"num_generations": 3}, ["multiple", "num_generations"]),
        ({"resume_from_checkpoint": "true"}, ["no checkpoint", "run"]),
        ({"resume_from_checkpoint": "elsewhere"}, ["elsewhere"]),
        ({"resume_from_checkpoint": "."}, ["not a checkpoint"]),
        ({"lr_scheduler_type": "zigzag"}, ["zigzag"]),
        ({"dtype": "int7"}, ["int7"]),
        ({"output_dir": "my.py/run"}, ["my.py"]),
        ({"output_dir": "my.py"}, ["my.py"]),
    ],
)
def test_a_mistake_is_one_sentence(flags: dict[str, Any], words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    said = refused(command(**flags), capsys)
    assert all(word in said for word in words), said


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([], ["prompts.jsonl"]),
        ([{"prompt": ""}, {"prompt": "A balm."}], ["prompts.jsonl", "1"]),
        ([{"question": "A balm?"}], ["prompt"]),
        ([{"prompt": "A balm. " * 400}, {"prompt": "A balm."}], ["context", "max_prompt_length"]),
        ([{"prompt": "A balm."}], ["fewer than two distinct prompts"]),
    ],
)
def test_prompts_that_cannot_be_used(
    rows: list[dict[str, Any]], words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    write_prompts("prompts.jsonl", rows)
    said = refused(command(), capsys)
    assert all(word in said for word in words), said


def test_a_long_prompt_can_be_cut(capsys: pytest.CaptureFixture[str]) -> None:
    write_prompts("prompts.jsonl", [{"prompt": "A balm. " * 400}, {"prompt": "A balm."}])
    assert main(command(max_prompt_length=20, max_steps=2)) == 0
    capsys.readouterr()


def test_a_full_disk_is_one_sentence_and_the_run_resumes(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second checkpoint meets a full disk; the first is whole, and the resumed run ends as one that was never stopped."""
    assert main(command(output_dir="whole", save_steps=2)) == 0
    from frugalign.proxy.network import ProxyModel

    save = ProxyModel.save_pretrained

    def full(self: Any, folder: Any, *rest: Any, **options: Any) -> None:
        if "checkpoint-4" in str(folder):
            raise OSError(errno.ENOSPC, "No space left on device", str(folder))
        save(self, folder, *rest, **options)

    with monkeypatch.context() as patched:
        patched.setattr(ProxyModel, "save_pretrained", full)
        said = refused(command(save_steps=2), capsys)
    assert "checkpoint-4" in said and "no space is left" in said
    assert [path.name for path in Path("run").glob("checkpoint-*")] == ["checkpoint-2"]
    assert main(command(save_steps=2, resume_from_checkpoint="true")) == 0
    assert Path("run/model.safetensors").read_bytes() == Path("whole/model.safetensors").read_bytes()
    assert not Path("run/.saving").exists()
