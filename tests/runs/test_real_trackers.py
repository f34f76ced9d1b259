"""The same with the real libraries, where they are installed: what they have stored on this machine is read back."""

from __future__ import annotations

import importlib.util
import json
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.methods.proxy_rlhf.small_trainer import trainer
from tests.two_layers import two_layers

from frugalign.engines.loading import load_model
from frugalign.runs.layout import read_log

Stored = tuple[dict[int, float], list[str]]
"""The reward of every logged step, and the completions of the tables."""


def read_tensorboard(folder: Path) -> Stored:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (place,) = (folder / "run" / "runs").iterdir()
    events = EventAccumulator(str(place)).Reload()
    rewards = {event.step: event.value for event in events.Scalars("train/reward")}
    texts = [event.tensor_proto.string_val[0].decode() for event in events.Tensors("completions/text_summary")]
    return rewards, [line.split(" | ")[2] for text in texts for line in text.splitlines()[2:]]


def read_mlflow(folder: Path) -> Stored:
    import mlflow

    (run,) = mlflow.search_runs(output_format="list")
    history = mlflow.MlflowClient().get_metric_history(run.info.run_id, "reward")
    table = mlflow.load_table("completions.json", run_ids=[run.info.run_id])
    return {entry.step: entry.value for entry in history}, list(table["completion"])


def read_trackio(folder: Path) -> Stored:
    (file,) = (folder / "trackio").glob("huggingface*.db")
    with sqlite3.connect(file) as stored:
        rows = [json.loads(text) for (text,) in stored.execute("SELECT metrics FROM metrics ORDER BY id")]
    rewards = {row["train/global_step"]: row["train/reward"] for row in rows if "train/reward" in row}
    tables = [row["completions"] for row in rows if "completions" in row]
    return rewards, [entry["completion"] for table in tables for entry in table["_value"]]


def read_wandb(folder: Path) -> Stored:
    import wandb

    summary = dict(wandb.run.summary)
    wandb.finish()
    files = sorted(
        folder.glob("wandb/offline-run-*/files/media/table/completions_*.table.json"),
        key=lambda path: path.stat().st_mtime_ns,
    )
    tables = [json.loads(path.read_text()) for path in files]
    column = [table["columns"].index("completion") for table in tables]
    # Offline, the summary holds the last values.
    last = {int(summary["train/global_step"]): float(summary["train/reward"])}
    return last, [row[place] for table, place in zip(tables, column, strict=True) for row in table["data"]]


READ: dict[str, Callable[[Path], Stored]] = {
    "tensorboard": read_tensorboard,
    "mlflow": read_mlflow,
    "trackio": read_trackio,
    "wandb": read_wandb,
}


@pytest.mark.slow
@pytest.mark.parametrize("name", list(READ))
def test_a_tracker_stores_the_log_and_the_samples(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if importlib.util.find_spec(name) is None:
        pytest.skip(f"{name} is not installed")
    monkeypatch.chdir(tmp_path)
    for variable, value in {
        "WANDB_MODE": "offline",
        "WANDB_DIR": str(tmp_path),
        "WANDB_SILENT": "true",
        "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/mlflow.db",
        "TRACKIO_DIR": str(tmp_path / "trackio"),
    }.items():
        monkeypatch.setenv(variable, value)
    options: dict[str, Any] = {"report_to": name, "log_completions": True, "logging_steps": 2}
    trainer(load_model(two_layers()), tmp_path / "run", **options).train()
    rewards, completions = READ[name](tmp_path)
    logged = {line["step"]: line["reward"] for line in read_log(tmp_path / "run") if "reward" in line}
    if name == "wandb":
        logged = {max(logged): logged[max(logged)]}
    assert rewards == pytest.approx(logged)
    rows = [json.loads(line) for line in (tmp_path / "run" / "completions.jsonl").read_text().splitlines()]
    spaces = (lambda text: " ".join(text.split()).replace("|", "\\|")) if name == "tensorboard" else str
    assert sorted(completions) == sorted(spaces(row["completion"]) for row in rows)
