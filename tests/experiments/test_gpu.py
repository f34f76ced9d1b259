"""`make gpu`: a part that fails or takes too long is a row, and the parts run at toy size without a GPU."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from experiments import gpu
from experiments.gpu import PARTS, Part, collect, collect_apart
from experiments.gpu_bases import SHAPES
from experiments.gpu_parts import Machine, Result

TOY = Machine("cpu", toy=True, bandwidth=1e9)


def breaks(machine: Machine) -> Iterator[Result]:
    yield {"what": "first"}
    raise ValueError("no such kernel\nand more")


def hangs(machine: Machine) -> Iterator[Result]:
    yield {"what": "first"}
    time.sleep(60)


def dies(machine: Machine) -> Iterator[Result]:
    yield {"what": "first"}
    os._exit(7)


@pytest.mark.parametrize(
    ("part", "reason"),
    [
        (breaks, "ValueError: no such kernel"),
        (hangs, "stopped after its limit of 1 s"),
        (dies, "its process ended with 7; see {log}"),
    ],
)
def test_a_part_that_fails_is_a_row_and_keeps_its_others(
    part: Callable[[Machine], Iterator[Result]], reason: str, tmp_path: Path
) -> None:
    rows = collect_apart(Part(part, 1), TOY, 1.0, tmp_path / "x")
    assert rows[0] == {"what": "first"}
    assert [row["failed"] for row in rows[1:]] == [reason.format(log=tmp_path / "x.log")]


@pytest.mark.parametrize("name", ["static-1B", pytest.param("loading-1B", marks=pytest.mark.slow)])
def test_a_part_runs_at_toy_size(name: str) -> None:
    rows = list(collect(PARTS[name], TOY))
    assert rows and all("(toy)" in row["what"] for row in rows)
    done = [row for row in rows if "failed" not in row]
    assert len(done) >= 2 and all(row["tokens a second"] > 0 and row["peak GB"] > 0 for row in done)
    assert all("bitsandbytes" in row["failed"] for row in rows if "failed" in row)


def test_the_script_says_that_there_is_no_gpu(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu.torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(
        sys, "argv", ["gpu", "--parts", "bandwidth", "learn", "--minutes", "0.09", "--out", str(tmp_path)]
    )
    monkeypatch.setitem(PARTS, "learn", Part(hangs, 60))
    gpu.main()
    said, found = capsys.readouterr().out.splitlines(), json.loads((tmp_path / "gpu.json").read_text())
    assert said[0].startswith("NO GPU HERE") and found["gpu"] is None and found["toy"] is True
    first = found["rows"][0]
    assert first["part"] == "bandwidth" and first["GB a second"] > 0.1
    assert "failed" in found["rows"][-1] and found["rows"][-1]["part"] == "learn"


def test_the_shapes_have_the_sizes_of_their_names() -> None:
    """And a parameter count by hand: one layer of width 4, 2 heads of which 1 has keys, 6 inside, 10 tokens."""
    assert {name: round(shape.parameters / 1e9, 1) for name, shape in SHAPES.items()} == {
        "toy": 0.0,
        "1B": 1.5,
        "7B": 7.2,
        "70B": 70.6,
    }
    tiny = gpu.gpu_parts.Shape(4, 1, 2, 1, 6, 10)
    layer = 4 * 4 + 2 * 4 * 2 + 4 * 4 + 3 * 4 * 6 + 2 * 4
    assert tiny.read_weights == layer + 4 + 40 and tiny.parameters == layer + 4 + 80
    assert tiny.kv_bytes() == 2 * 1 * 2 * 2
