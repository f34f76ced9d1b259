"""`frugalign proxy`: a whole run through the front door, and every mistake as one sentence with exit 2."""

from __future__ import annotations

import errno
import json
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
import yaml
from tests.two_layers import two_layers

from frugalign import sandbox
from frugalign.cli.main import main
from frugalign.runs.elsewhere import MANIFEST

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
        "model_name_or_path": two_layers(),
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
    assert main(command(model_name_or_path="frugalign.sandbox:model", eval_steps=2, save_steps=2)) == 0
    said = capsys.readouterr().out
    assert " % of its base, is in run, trained in " in said
    expected = (
        "frugalign evaluate --model_name_or_path frugalign.sandbox:model --proxy run --dataset_name prompts.jsonl"
    )
    assert f"{expected} --reward my.py:short --output_dir run/evaluation" in said
    names = {path.name for path in Path("run").iterdir()}
    assert names >= {
        "model.safetensors", "config.json", "README.md", "config.yaml", "metrics.jsonl", "costs.json", "checkpoint-4",
    }  # fmt: skip
    assert {name for name in names if name.startswith(".")} == {".lock"}
    card = Path("run/README.md").read_text()
    assert "2403.04283" in card and "frugalign.sandbox:model" in card and "Trainable parameters" in card
    settings = yaml.safe_load(Path("run/config.yaml").read_text())
    assert (settings["max_steps"], settings["p_t"], settings["reward"]) == (4, 0.001, ["my.py:short"])
    lines = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    assert any("eval_reward" in line for line in lines) and any("reward" in line for line in lines)
    config = json.loads(Path("run/config.json").read_text())
    assert config["base"]["name"] == sandbox.model and config["trained_on"]["held_out_fraction"] == 0.1
    assert stat.S_IMODE(Path("run/config.yaml").stat().st_mode) & 0o444


@pytest.mark.slow
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
        ({"learning_rate": -2}, ["learning_rate is -2", "at least 0"]),
        ({"hidden": 0}, ["hidden is 0"]),
        ({"per_device_train_batch_size": 0}, ["per_device_train_batch_size is 0"]),
        ({"seed": -1}, ["seed is -1"]),
        ({"seed": 10**20}, ["seed is", "2^32"]),
        ({"gradient_checkpointing": "true"}, ["gradient_checkpointing is not carried over"]),
        ({"bf16": "true"}, ["bf16 is not carried over", "float32"]),
        ({"fp16": "true"}, ["fp16 is not carried over", "float32"]),
        ({"dataloader_num_workers": 2}, ["dataloader_num_workers is not carried over"]),
        ({"dataloader_drop_last": "true"}, ["dataloader_drop_last is not carried over"]),
        ({"train_sampling_strategy": "group_by_length"}, ["train_sampling_strategy is not carried over"]),
        ({"data_seed": 3}, ["data_seed is not carried over"]),
        ({"chat_template_kwargs": '{"chat_template": "x"}'}, ["without chat_template", "chat_template.jinja"]),
        ({"adam_beta1": 2}, ["adam_beta1"]),
        ({"report_to": "nope"}, ["nope"]),
        ({"lr_scheduler_type": "cosine_with_min_lr"}, ["lr_scheduler_type cosine_with_min_lr cannot be used"]),
        ({"model_name_or_path": "frugalign.sandbox:gold"}, ["frugalign.sandbox:gold"]),
        ({"dataset_name": "frugalign.sandbox:gold"}, ["frugalign.sandbox:gold"]),
        ({"load_best_model_at_end": "true", "eval_steps": 2, "save_steps": 2}, ["load_best_model_at_end"]),
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


@pytest.mark.slow
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
    assert not Path("run/.frugalign-saving").exists()


@pytest.mark.slow
def test_a_second_run_does_not_write_over_the_first(capsys: pytest.CaptureFixture[str]) -> None:
    """Refused with the ways out; deleted when asked for, down to its metrics."""
    assert main(command(save_steps=2)) == 0
    first = Path("run/model.safetensors").read_bytes()
    assert "holds an earlier run" in refused(command(save_steps=2, seed=1), capsys)
    assert Path("run/model.safetensors").read_bytes() == first
    assert main(command(max_steps=2, save_steps=2, seed=1, overwrite_output_dir="true")) == 0
    assert [path.name for path in Path("run").glob("checkpoint-*")] == ["checkpoint-2"]
    assert Path("run/model.safetensors").read_bytes() != first
    capsys.readouterr()


def test_a_run_is_resumed_under_its_own_settings(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(command(save_steps=2)) == 0
    for flags, words in (({"beta": 0.5}, "beta None, not 0.5"), ({"hidden": 3}, "hidden None, not 3")):
        assert words in refused(command(resume_from_checkpoint="true", **flags), capsys)


def test_a_finished_run_that_is_resumed_takes_no_further_step(capsys: pytest.CaptureFixture[str]) -> None:
    """A kill between the last checkpoint and the artefact: the artefact is that of the whole run."""
    flags = command(save_steps=2, lr_scheduler_type="constant")
    assert main(flags) == 0
    whole = Path("run/model.safetensors").read_bytes()
    Path("run/model.safetensors").unlink()
    assert main([*flags, "--resume_from_checkpoint", "true"]) == 0
    assert Path("run/model.safetensors").read_bytes() == whole
    assert {path.name for path in Path("run").glob("checkpoint-*")} == {"checkpoint-2", "checkpoint-4"}
    capsys.readouterr()


def test_a_checkpoint_too_many_is_deleted_on_resuming(capsys: pytest.CaptureFixture[str]) -> None:
    """A kill between the last checkpoint and the deletion of the oldest one."""
    flags = command(save_steps=2, save_total_limit=1)
    assert main(flags) == 0
    assert [path.name for path in Path("run").glob("checkpoint-*")] == ["checkpoint-4"]
    shutil.copytree("run/checkpoint-4", "run/checkpoint-2")
    Path("run/model.safetensors").unlink()
    assert main(flags) == 0
    assert [path.name for path in Path("run").glob("checkpoint-*")] == ["checkpoint-4"]
    assert Path("run/model.safetensors").is_file()
    capsys.readouterr()


def test_the_config_of_a_run_holds_what_was_not_ours_too(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(command(weight_decay=0.1, adam_beta2=0.5, overwrite_output_dir="true")) == 0
    settings = yaml.safe_load(Path("run/config.yaml").read_text())
    assert (settings["weight_decay"], settings["adam_beta2"], settings["use_cpu"]) == (0.1, 0.5, True)
    assert not {"resume_from_checkpoint", "overwrite_output_dir"} & set(settings)
    capsys.readouterr()


def test_a_test_split_is_not_trained_on(capsys: pytest.CaptureFixture[str]) -> None:
    Path("data").mkdir()
    Path("prompts.jsonl").rename("data/test.jsonl")
    assert "a test split only" in refused(command(dataset_name="data"), capsys)


@pytest.mark.slow
def test_what_was_trained_with_an_adapter_and_a_cut_is_used_with_them(capsys: pytest.CaptureFixture[str]) -> None:
    """The next commands name neither: the artefact brings the base's adapter and the length of prompts."""
    import torch
    from peft import LoraConfig, get_peft_model

    from frugalign import GuidedModel
    from frugalign.engines.loading import load_model

    config = LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    torch.manual_seed(0)
    get_peft_model(load_model(two_layers()).model, config).save_pretrained("lora")
    write_prompts("prompts.jsonl", [{"prompt": order * 20} for order in ORDERS * 3])
    assert main(command(adapter="lora", max_prompt_length=40)) == 0
    base = ["--model_name_or_path", two_layers(), "--proxy", "run"]
    data = ["--dataset_name", "prompts.jsonl", "--reward", "my.py:short", "--output_dir", "seen"]
    assert main(["evaluate", *base, *data]) == 0
    assert json.loads(Path("seen/metrics.json").read_text())["settings"]["max_prompt_length"] == 40
    assert main(["generate", *base, "--prompt", ORDERS[0] * 20]) == 0
    assert GuidedModel.from_pretrained("run").proxy.config.base["adapter"] == str(Path("lora").absolute())
    capsys.readouterr()


@pytest.mark.slow
def test_a_run_elsewhere_is_resumed_on_another_machine(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Its folder is a URL. What a machine had uploaded when it was killed is what another one resumes from."""
    url, files = "memory://runs/a", fsspec.filesystem("memory")
    monkeypatch.setenv("HOME", str(tmp_path / "first"))
    try:
        assert main(command(output_dir=url, save_steps=2)) == 0
        assert f"The run's folder is {url}; its copy here is {tmp_path}/first/" in capsys.readouterr().out
        whole = {name: files.cat_file(f"/runs/a/{name}") for name in ("model.safetensors", "metrics.jsonl")}
        manifest = json.loads(files.cat_file(f"/runs/a/{MANIFEST}"))
        early = {name: digest for name, digest in manifest.items() if name.startswith(("checkpoint-2/", "metrics"))}
        files.pipe_file(f"/runs/a/{MANIFEST}", json.dumps(early).encode())
        monkeypatch.setenv("HOME", str(tmp_path / "second"))
        assert main(command(output_dir=url, save_steps=2)) == 0
        assert "from checkpoint-2." in caplog.text
        assert {name: files.cat_file(f"/runs/a/{name}") for name in whole} == whole
    finally:
        files.rm("/runs", recursive=True)


def test_a_url_that_cannot_be_reached_is_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(command(output_dir="nonsense://runs/a")) == 2
    said = capsys.readouterr().err
    assert said.startswith("frugalign: Cannot read nonsense://runs/a: ") and said.count("\n") == 1
