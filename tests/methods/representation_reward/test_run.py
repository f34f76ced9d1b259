"""`frugalign reward`: from preference data to a reward, a report and a page; and what stops it, in one sentence."""

import json
from pathlib import Path
from typing import Any

import pytest
from tests.two_layers import two_layers

from frugalign.cli.main import main
from frugalign.rewards import load_reward
from frugalign.runs.layout import read_costs
from frugalign.sandbox.cached import sample_pairs


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("data").mkdir()
    for split, size in (("train", 300), ("test", 200)):
        rows = sample_pairs(split, size)
        Path(f"data/{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def command(**flags: Any) -> list[str]:
    """The command with these flags; None leaves one out."""
    given: dict[str, Any] = {
        "model_name_or_path": two_layers(),
        "dataset_name": "data",
        "output_dir": "reward",
        "cache_dir": "states",
        "layers": "1 2",
        "n_shuffles": 3,
        "max_iterations": 30,
    } | flags
    return [
        "reward",
        *(word for name, value in given.items() if value is not None for word in (f"--{name}", *str(value).split())),
    ]


@pytest.mark.slow
def test_pairs_become_a_reward_with_its_report(capsys: pytest.CaptureFixture[str]) -> None:
    """It beats its shuffled control on unseen prompts, says what it cost, loads again, and is not written over."""
    grouped = [row | {"kind": ("long", "short")[i % 2]} for i, row in enumerate(sample_pairs("test", 200))]
    Path("grouped.jsonl").write_text("".join(json.dumps(row) + "\n" for row in grouped))
    assert main(command(eval_dataset_name="grouped.jsonl", eval_group_column="kind")) == 0
    said = capsys.readouterr().out
    assert "Held-out accuracy" in said and "frugalign proxy" in said and "AUROC by group on grouped.jsonl: long" in said
    report = json.loads(Path("reward/reward_report.json").read_text())
    assert report["examples"]["test"] == 200 and report["examples"]["train"] + report["examples"]["validation"] == 300
    accuracy = report["test"]["accuracy"]["mean"]
    assert accuracy > 0.6 > report["shuffled"]["mean"]
    assert report["elsewhere"]["grouped.jsonl"]["accuracy"]["mean"] == pytest.approx(accuracy)
    assert [each["layer"] for each in report["per_layer"]] == [1, 2]
    assert [each["layers"] for each in report["layer_candidates"]] == [[1, 2]]
    costs = read_costs(Path("reward"))
    assert set(costs["seconds"]) == {"load", "read", "optimise", "evaluate"} and costs["generated_tokens"] == 0
    assert report["cost"]["seconds_extracting_per_1000"] > 0
    assert report["cost"]["tokens"] > 0 and len(report["learning_curve"]) == 4
    assert 0 <= report["test"]["calibration_after"]["ece"] < 0.3
    page = Path("reward/report.html").read_text()
    assert page.count("data:image/svg+xml") == 5 and "shuffled labels" in page and report["group_note"] in page
    groups = report["elsewhere"]["grouped.jsonl"]["groups"]
    assert [(each["group"], each["good"], each["bad"]) for each in groups] == [("long", 100, 100), ("short", 100, 100)]
    rows = sample_pairs("test", 60, seed=1)
    reward = load_reward("reward").function
    better, worse = (
        reward(prompts=[row["prompt"] for row in rows], completions=[row[side] for row in rows])
        for side in ("chosen", "rejected")
    )
    assert sum(a > b for a, b in zip(better, worse, strict=True)) > 33
    assert main(command()) == 2
    assert "holds an earlier run" in capsys.readouterr().err


@pytest.mark.slow
def test_labelled_answers_become_a_reward_too(capsys: pytest.CaptureFixture[str]) -> None:
    """Each answer alone, good or not; a tenth of the prompts is held out where there is no test split."""
    rows = [
        {"prompt": row["prompt"], "completion": row[side], "label": side == "chosen"}
        for row in sample_pairs("train", 300)
        for side in ("chosen", "rejected")
    ]
    Path("labels.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert main(command(dataset_name="labels.jsonl", n_shuffles=1, layers=None)) == 0
    report = json.loads(Path("reward/reward_report.json").read_text())
    candidates = report["layer_candidates"]
    assert [each["layers"] for each in candidates] == [[1], [2], [1, 2]]
    best = min(candidates, key=lambda each: each["validation_loss"])
    assert report["settings"]["layers"] == best["layers"] and len(report["per_layer"]) == 2
    assert load_reward("reward").function.layers == best["layers"]
    assert "Validation loss of each block of layers" in Path("reward/report.html").read_text()
    assert not report["paired"] and report["test"]["auroc"] > 0.6
    assert "calibration_after" not in report["test"]
    capsys.readouterr()


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"dataset_name": "absent.jsonl"}, "absent.jsonl"),
        ({"dataset_name": "frugalign.sandbox:prompts"}, "no preference data"),
        ({"layers": "9"}, "no layer 9"),
        ({"max_cache_gib": "0.000001"}, "choose fewer layers"),
        (
            {"dataset_name": "data/train.jsonl", "test_fraction": "1.5"},
            "test_fraction is 1.5; it must be above 0 and below 1",
        ),
        ({"model_name_or_path": "./nothing"}, "./nothing"),
        ({"output_dir": "data/train.jsonl"}, "data/train.jsonl"),
        ({"eval_group_column": "kind"}, "eval_group_column needs --eval_dataset_name"),
        ({"eval_dataset_name": "data/test.jsonl", "eval_group_column": "kind"}, "has no column kind"),
    ],
)
def test_a_mistake_is_one_sentence(flags: dict[str, Any], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(command(**flags)) == 2
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("frugalign: ")]
    assert len(said) == 1 and words in said[0]


@pytest.mark.slow
def test_the_proxy_learns_from_a_reward_on_its_own_model(capsys: pytest.CaptureFixture[str]) -> None:
    """The states come from the rollout: what it cost to score is no forward pass beyond one step per completion."""
    assert main(command()) == 0
    prompts = [{"prompt": row["prompt"]} for row in sample_pairs("train", 40)]
    Path("prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in prompts))
    flags = [
        "--num_generations",
        "4",
        "--per_device_train_batch_size",
        "16",
        "--max_new_tokens",
        "12",
        "--max_steps",
        "4",
    ]
    base = ["--model_name_or_path", two_layers(), "--dataset_name", "prompts.jsonl", "--use_cpu", "true"]
    tokens = {}
    for name, reward in (("states", "reward"), ("length", "my.py:short")):
        Path("my.py").write_text("def short(completions, **_):\n    return [-len(text) / 10 for text in completions]\n")
        assert main(["proxy", *base, "--reward", reward, "--output_dir", name, *flags]) == 0
        costs = json.loads(Path(f"{name}/costs.json").read_text())
        tokens[name] = costs["lm_forward_tokens"] / costs["generated_tokens"]
        assert costs["reward_calls"] == 16
    assert tokens["states"] < tokens["length"] * 1.5
    capsys.readouterr()
