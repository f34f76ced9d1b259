"""Every file of a run folder, damaged in every way: `report` and a study's page are drawn, or say in one sentence what is wrong."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from peft import LoraConfig, get_peft_model
from tests.runs.damages import DAMAGES
from tests.study.written_cells import GOLD, METHODS, finish, study

import frugalign.sandbox as sandbox
from frugalign.base.errors import FrugalignError
from frugalign.base.ledger import Ledger
from frugalign.cli.main import main
from frugalign.engines.loading import attach_adapter, load_model
from frugalign.reports.study.page import write_study
from frugalign.runs.save_policy import trained_on_of
from frugalign.study.runner import read_study


def estimate(mean: float) -> dict[str, Any]:
    return {"mean": mean, "ci_low": mean - 0.1, "ci_high": mean + 0.1, "n": 8}


def lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def content(path: Path, value: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def training(folder: Path) -> None:
    """A re-ranking run with its evaluation."""
    shift = {
        f"shift/{name}_spearman{end}": 0.5
        for name in ("log_likelihood", "probe_reward")
        for end in ("", "_low", "_high")
    }
    confidence = {f"confidence/histogram_{place}": 0.1 for place in range(10)}
    steps = [
        {"step": step, "loss": 0.5, "reward": 0.1, **shift, "shift/wasserstein": 0.2, **confidence} for step in (1, 2)
    ]
    lines(folder / "metrics.jsonl", steps)
    content(
        folder / "shift.json", {"floor": {"mean": 0.1, "high": 0.2}, "reward": "rude", "prompts": 4, "responses": 8}
    )
    (folder / "config.yaml").write_text("beta: 0.1\nreward:\n- gold\n")
    Ledger().save(folder / "costs.json")
    rewards = {"reward": estimate(0.5), "rewards": {"gold": estimate(0.5), "rude": estimate(0.1)}}
    rewards |= {f"base_{name}": value for name, value in rewards.items()}
    content(
        folder / "evaluation" / "metrics.json",
        rewards | {"win_rate": estimate(0.5), "settings": {"prompts": 8, "num_samples": 1}},
    )
    sample = {"base": "a", "policy": "b", "base_rewards": {"gold": 0.2}, "rewards": {"gold": 0.9}}
    lines(folder / "evaluation" / "samples.jsonl", [{"prompt": [{"role": "user", "content": "p"}]} | sample] * 8)
    Ledger().save(folder / "evaluation" / "costs.json")


def rounds(folder: Path) -> None:
    """A PSLE run of one round."""
    measures = {
        "reward": estimate(0.5),
        "rewards": {"gold": estimate(0.5)},
        "kl_per_sequence": None,
        "win_rate": estimate(0.5),
    }
    for name in ("start", "round-000"):
        content(folder / name / "evaluation.json", measures)
        lines(
            folder / name / "evaluation.jsonl",
            [{"prompt": "p", "completion": name, "reward": 1.0, "rewards": {"gold": 1.0}}] * 3,
        )
    number = {"mean": 0.5, "std": 0.1}
    manifest = {
        "round": 0,
        "principles": "hash",
        "tau": 0.2,
        "threshold": 0.3,
        "optimizer_steps": 4,
        "end": {"weights": "hash"},
    }
    manifest |= {
        "branches": {"ranked": 3, "imitated": 1, "dropped": 0, "unscored": 0},
        "use": {"tokens": 0.9, "responses": 0.8},
    }
    manifest |= {"rewards": {"plain": number, "guided": number}, "use_of_raft": {"tokens": 0.5, "responses": 0.5}}
    content(folder / "round-000" / "manifest.json", manifest)
    content(folder / "round-000" / "costs.json", {"generated_tokens": 12, "seconds": {"rollout": 2.0}})
    lines(
        folder / "round-000" / "responses.jsonl", [{"rewards": [0.0, 1.0, 2.0, None], "by_reward": {"gold": [0.0]}}] * 2
    )
    likelihoods = {"log_likelihood/ranked_guided": -2.0, "log_likelihood/ranked_plain": -3.0}
    lines(folder / "round-000" / "metrics.jsonl", [{"step": step, **likelihoods} for step in (1, 4)])
    content(folder / "costs.json", {"generated_tokens": 30})
    (folder / "config.yaml").write_text("method: psle\n")


def reward(folder: Path) -> None:
    """A representation reward."""
    calibration = {"ece": 0.1, "confidence": [0.5, 0.9], "accuracy": [0.5, 0.8]}
    test = {"accuracy": estimate(0.7), "auroc": 0.8, "rewards": {"chosen": [1.0, 2.0], "rejected": [0.0, 1.0]}}
    test |= {"calibration_before": calibration, "calibration_after": calibration}
    report = {
        "settings": {"model_name_or_path": "model", "dataset_name": "pairs"},
        "examples": {"train": 10, "validation": 2, "test": 2},
        "fit": {"history": [[0.7, 0.7], [0.5, 0.6]]},
        "test": test,
        "shuffled": {"mean": 0.5, "each": [0.5]},
        "bag_of_words": 0.6,
        "length_only": 0.5,
        "elsewhere": {},
        "group_note": "not measured",
        "per_layer": [{"layer": 1, "accuracy": 0.6}],
        "layer_candidates": [{"layers": [layer], "weight_decay": 1.0, "validation_loss": 0.6} for layer in (1, 2)],
        "learning_curve": [{"examples": 10, "accuracy": 0.7}],
        "cost": {"seconds_extracting_per_1000": 1.0, "seconds_fitting_per_1000": 1.0, "flops_extracting_per_1000": 1e9, "tokens": 9},
    }  # fmt: skip
    content(folder / "reward_report.json", report)


RUNS = {"training": training, "rounds": rounds, "reward": reward}
FILES = {
    "training": ["config.yaml", "metrics.jsonl", "costs.json", "shift.json"]
    + [f"evaluation/{name}" for name in ("metrics.json", "samples.jsonl", "costs.json")],
    "rounds": ["config.yaml", "costs.json", "start/evaluation.json", "start/evaluation.jsonl"]
    + [f"round-000/{name}" for name in ("manifest.json", "responses.jsonl", "metrics.jsonl", "costs.json")]
    + [f"round-000/{name}" for name in ("evaluation.json", "evaluation.jsonl")],
    "reward": ["reward_report.json"],
}
EVERY = [(kind, name) for kind, names in FILES.items() for name in names]


FIGURES = (
    "curve",
    "distributions",
    "bars",
    "shares",
    "stacked",
    "with_intervals",
    "segmented_curves",
    "distances",
    "reliability",
)


@pytest.fixture(autouse=True)
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages without their figures, which take most of the time."""
    for name in FIGURES:
        monkeypatch.setattr(f"frugalign.reports.figures.{name}", lambda *_, **__: "data:,")
    for name in ("figures_of", "run_figures_of"):
        monkeypatch.setattr(f"frugalign.reports.study.page.{name}", lambda *_: [])


@pytest.mark.parametrize("kind", RUNS)
def test_a_sound_folder_has_its_page(kind: str, tmp_path: Path) -> None:
    RUNS[kind](tmp_path)
    assert main(["report", str(tmp_path)]) == 0
    assert "This folder lacks" not in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize(("kind", "name"), EVERY)
def test_a_damaged_file_is_one_sentence_or_left_out(
    kind: str, name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Seventeen files in fifteen ways: 255 mutations."""
    RUNS[kind](tmp_path / "sound")
    for damage, act in DAMAGES.items():
        folder = tmp_path / damage.replace(" ", "-")
        shutil.copytree(tmp_path / "sound", folder)
        act(folder / name)
        before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        status = main(["report", str(folder)])
        said = capsys.readouterr().err.strip()
        assert status in (0, 2), damage
        if status == 2:
            assert said.startswith("frugalign: ") and "\n" not in said and str(folder) in said, (damage, said)
        left = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != "report.html"}
        assert left == before, damage


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors", "trained_on.json"])
def test_a_damaged_adapter_is_one_sentence(name: str, tmp_path: Path) -> None:
    """As `evaluate --adapter` reads it."""
    lora = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    get_peft_model(load_model(sandbox.model).model, lora).save_pretrained(tmp_path / "sound")
    about = {"name": "data", "fingerprint": "hash", "held_out_fraction": 0.1, "seed": 0}
    content(tmp_path / "sound" / "trained_on.json", about)
    for damage, act in DAMAGES.items():
        folder = tmp_path / damage.replace(" ", "-")
        shutil.copytree(tmp_path / "sound", folder)
        act(folder / name)
        try:
            trained_on_of(str(folder))
            attach_adapter(load_model(sandbox.model).model, str(folder))
        except FrugalignError as error:
            assert "\n" not in str(error) and str(folder) in str(error), damage
        else:
            assert name == "trained_on.json", damage


@pytest.mark.parametrize("name", ["cell.json", "evaluation/samples.jsonl"])
def test_a_damaged_cell_of_a_study_is_one_sentence(name: str, tmp_path: Path) -> None:
    for damage, act in DAMAGES.items():
        options = study(tmp_path / damage.replace(" ", "-"), METHODS)
        finish(options, GOLD)
        cell = next(Path(options.output_dir).glob("cells/dpo-*"))
        act(cell / name)
        try:
            write_study(read_study(options), "study.yaml")
        except FrugalignError as error:
            assert "\n" not in str(error) and options.output_dir in str(error), damage
