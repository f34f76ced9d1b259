"""The demo: its settings are the recipe's, and a few steps of it leave the page and everything behind it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

import frugalign.sandbox as sandbox
from frugalign.cli.demo import cost, quality
from frugalign.cli.demo_run import MEASURES, SETTINGS, run_demo

RECIPE = Path(__file__).parents[2] / "recipes" / "sandbox-proxy.yaml"


def test_the_settings_are_the_recipe() -> None:
    recipe = yaml.safe_load(RECIPE.read_text())
    assert recipe.pop("output_dir") == "runs/sandbox-proxy"
    assert recipe == SETTINGS


@pytest.mark.slow
def test_two_steps_of_the_demo_write_everything(tmp_path: Path) -> None:
    demo = run_demo(str(tmp_path), max_steps=2)
    names = {path.name for path in tmp_path.iterdir()}
    assert names >= {
        "model.safetensors", "config.json", "config.yaml", "README.md", "metrics.jsonl", "metrics.json", "costs.json",
        "samples.jsonl", "report.html", "checkpoint-2",
    }  # fmt: skip
    assert Path(demo.report) == tmp_path / "report.html"
    assert "<html" in (tmp_path / "report.html").read_text()
    assert set(demo.metrics["rewards"]) == set(demo.metrics["base_rewards"]) == set(MEASURES)
    assert json.loads((tmp_path / "costs.json").read_text())["optimizer_steps"] == 2 == demo.costs["optimizer_steps"]
    assert {kind: len(some) for kind, some in demo.samples.items()} == {"forbidden": 3, "lawful": 3}
    lines = (Path(sandbox.prompts) / "test.jsonl").read_text().splitlines()
    unseen = {row["prompt"]: row["label"] for row in map(json.loads, lines)}
    for kind, label in (("forbidden", "unsafe"), ("lawful", "safe")):
        assert all(unseen[each["prompt"]] == label and each["base"] and each["policy"] for each in demo.samples[kind])
    assert demo.metrics["settings"]["prompts"] == len(unseen)
    # The terminal's table and lines are made of these very numbers.
    rows = {title: cells for title, *cells in quality(demo.metrics)}
    assert len(rows) == len(MEASURES) + 1 and "—" not in {cell for cells in rows.values() for cell in cells}
    assert dict(cost(demo.costs))["Generated"].endswith("128 replies scored")
