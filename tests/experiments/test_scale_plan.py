"""The plan's counts against ones made by hand, and its stored rows against the script."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from experiments.gpu_bases import SHAPES, Shape
from experiments.scale_plan import (
    LAYOUTS,
    Assumed,
    Counts,
    Job,
    Layout,
    facts,
    memory,
    step_seconds,
    tables,
    with_measured,
)
from experiments.summary import RESULTS, as_text

TINY = Shape(8, 2, 2, 1, 16, 100)


def test_the_stored_rows_are_those_of_the_script() -> None:
    shape, stored = SHAPES["70B"], json.loads((RESULTS / "scale-plan.json").read_text("utf-8"))
    fresh = json.loads(as_text(facts(Assumed(), Job(), Counts(shape)), tables(Assumed(), Job(), shape)))
    assert {name: stored[name] for name in fresh} == fresh


def test_every_layout_fits_its_gpus() -> None:
    rows = tables(Assumed(), Job(), SHAPES["70B"])
    for name, layout in LAYOUTS.items():
        assert layout.gpus % layout.split == 0
        for kind in ("memory", "LoRA memory"):
            row = rows[f"{kind}, {name}"]
            assert row["together"] <= Assumed().used * row["of"], (kind, name)


def test_counts_by_hand() -> None:
    """Proxy: norm 16, query 9·256 and 257·256, keys 9·256, tail 256, bias 1. LoRA of rank 16 on 2 layers: q and o 16+16, k and v 12 each, and
    three of 24."""
    counts = Counts(TINY)
    assert counts.proxy == 16 + 9 * 256 + 257 * 256 + 9 * 256 + 256 + 1
    assert counts.lora == 2 * 16 * (16 + 16 + 12 + 12 + 3 * 24)
    assert counts.record() == 16 + 108 + 24
    job = Job(prompts=100, group=4, responses=40, prompt_tokens=10, new_tokens=20)
    assert (job.rounds, job.positions) == (10, 800)
    layout = Layout("H100", 2, 2, 20)
    found = memory(layout, counts, job)
    assert found["weights"] == pytest.approx(TINY.parameters / 1e9)
    assert found["keys and values"] == pytest.approx(20 * 30 * (2 * 2 * 1 * 4 * 2) / 2 / 1e9)
    assert found["together"] == pytest.approx(sum(found[name] for name in list(found)[:4]))


def test_a_step_is_bound_by_the_memory_or_by_arithmetic() -> None:
    """At one row the weights are read in 141 GB / (4 · 3.35 TB/s · 0.6); at many rows arithmetic takes longer than that."""
    counts, job, assumed = Counts(SHAPES["70B"]), Job(), Assumed(step=0.0, reduce=0.0)
    one, many = (step_seconds(Layout("H100", 4, 4, rows), counts, job, assumed) for rows in (1, 512))
    assert one == pytest.approx(2 * SHAPES["70B"].read_weights / (4 * 3.35e12 * 0.6), rel=0.01)
    assert (
        many == pytest.approx(2 * SHAPES["70B"].read_weights * 512 / (4 * 989e12 * 0.5), rel=0.2) and many > 1.3 * one
    )


def test_shares_measured_on_a_gpu_replace_assumed_ones(tmp_path: Path) -> None:
    row = {"what": "7B, batch 16: our loop, guided", "share of bandwidth": 0.4}
    (tmp_path / "gpu.json").write_text(json.dumps({"toy": False, "rows": [row]}))
    assert with_measured(Assumed(), tmp_path / "gpu.json") == replace(Assumed(), bandwidth=0.4, guided=1.0)
    (tmp_path / "gpu.json").write_text(json.dumps({"toy": True, "rows": [row]}))
    with pytest.raises(ValueError, match="no share of the bandwidth of a GPU"):
        with_measured(Assumed(), tmp_path / "gpu.json")
